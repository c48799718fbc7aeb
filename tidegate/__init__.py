"""Tidegate's public names: what applications import to check caps, hold quantities and report usage.

Everything is loaded on first use, so that importing the package costs nothing and needs no extra that is not used.
docs/api.md and docs/connectors.md describe them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tidegate.operators.gate.decision import Decision, Receipt
    from tidegate.operators.model.errors import TidegateError
    from tidegate.serving.client.emit import EmitError, HttpEmit, LogEmit
    from tidegate.serving.client.middleware import Denied, Held, Metering, UsageMiddleware
    from tidegate.serving.gate.arguments import Quantity, UnknownMeter
    from tidegate.serving.gate.gate import AsyncGate, Gate

__all__ = [
    "AsyncGate",
    "Decision",
    "Denied",
    "EmitError",
    "Gate",
    "Held",
    "HttpEmit",
    "LogEmit",
    "Metering",
    "Quantity",
    "Receipt",
    "TidegateError",
    "UnknownMeter",
    "UsageMiddleware",
]

_MODULES: Final = {
    "AsyncGate": "serving.gate.gate",
    "Decision": "operators.gate.decision",
    "Denied": "serving.client.middleware",
    "EmitError": "serving.client.emit",
    "Gate": "serving.gate.gate",
    "Held": "serving.client.middleware",
    "HttpEmit": "serving.client.emit",
    "LogEmit": "serving.client.emit",
    "Metering": "serving.client.middleware",
    "Quantity": "serving.gate.arguments",
    "Receipt": "operators.gate.decision",
    "TidegateError": "operators.model.errors",
    "UnknownMeter": "serving.gate.arguments",
    "UsageMiddleware": "serving.client.middleware",
}


def __getattr__(name: str) -> Any:
    """Return a public name, from the module that has it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
