"""The gate: may this request pass? `Gate` for threads, `AsyncGate` for event loops; docs/semantics.md has the rules."""

from operators.gate import Decision, Receipt
from serving.gate.asked import Quantity, UnknownMeter
from serving.gate.gate import AsyncGate, Gate

__all__ = ["AsyncGate", "Decision", "Gate", "Quantity", "Receipt", "UnknownMeter"]
