"""A simulator of the billing provider: Dodo's metering API on this machine, with faults on demand.

It is for development, tests and the demo, never on the path of a real run. Start it with `python -m simulator --port
0`.
"""
