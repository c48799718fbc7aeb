"""Alerts in words, for mail and chat, from alerts as they are written (operators/model/wire.py)."""

from collections.abc import Mapping
from typing import Any

_WHAT = {
    ("threshold", "raised"): "has passed {level} of {of}",
    ("threshold", "resolved"): "is below {level} of {of} again",
    ("cap_reached", "raised"): "has reached its cap of {limit}",
    ("cap_released", "resolved"): "is below its cap of {limit} again",
    ("overage_started", "raised"): "has used up what is included and is in overage",
    ("overage_ended", "resolved"): "is within what is included again",
    ("correction", "announced"): "was corrected in a closed period",
}


def write_sentence(alert: Mapping[str, Any]) -> str:
    """Return one sentence with the customer, the meter, what happened, and the total."""
    what = _WHAT.get((str(alert.get("kind")), str(alert.get("state"))))
    customer, meter = alert.get("customer") or "Tidegate", alert.get("meter")
    if what is None:
        # Underscores in a text stay, because they may be part of a property's name.
        words = str(alert.get("text") or f"{alert.get('kind')} {alert.get('state')}".replace("_", " "))
        return f"{customer}{f' · {meter}' if meter else ''}: {words}"
    limit = alert.get("limit")
    of = f"{limit}" if limit else "its limit"
    level = alert.get("level")
    if not str(level).endswith("%"):
        what = what.replace(" of {of}", "")
    words = what.format(level=level, of=of, limit=limit)
    return f"{customer} {words}: {meter} stands at {alert.get('total')}"


def write_title(alert: Mapping[str, Any]) -> str:
    """Return a few words for a subject line: kind, customer and meter."""
    kind = str(alert.get("kind", "alert")).replace("_", " ").capitalize()
    named = ", ".join(str(alert[name]) for name in ("customer", "meter") if alert.get(name))
    resolved = " (resolved)" if alert.get("state") == "resolved" and "released" not in kind else ""
    return f"{kind}{resolved}: {named}" if named else f"{kind}{resolved}"
