"""What may be chosen: settings from the environment, and the catalog of meters, plans and caps.

The only place that reads the environment. Connectors are named as text and imported when opened.
"""
