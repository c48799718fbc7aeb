"""A flow's folder, as in the tests of flows."""

from tests.flows.conftest import place

__all__ = ["place"]
