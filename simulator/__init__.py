"""A billing platform to work against: Dodo's metering surface on this machine, with its faults on demand.

For development, tests and the demo; never on the path of a real run. `python -m simulator --port 0`.
"""
