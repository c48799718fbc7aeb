"""The gate: may this request pass? `Gate` for threads, `AsyncGate` for event loops; docs/semantics.md has the rules."""

from tidegate.operators.gate.decision import Decision, Receipt
from tidegate.serving.gate.arguments import Quantity, UnknownMeter
from tidegate.serving.gate.gate import AsyncGate, Gate

__all__ = ["AsyncGate", "Decision", "Gate", "Quantity", "Receipt", "UnknownMeter"]
