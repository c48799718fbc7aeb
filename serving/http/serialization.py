"""Records as the service's JSON has them."""

from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from tidegate.operators.columns.quantity import QUANTITY_MAX
from tidegate.operators.events.rfc3339 import parse
from tidegate.operators.gate.decision import Decision
from tidegate.operators.metering.thresholds import format_plain
from tidegate.operators.model.catalog import Limit, Threshold
from tidegate.operators.model.periods import MAX_AT, MIN_AT
from tidegate.operators.model.ports import CatalogVersion, Note
from tidegate.serving.gate.freshness import FlowState, describe_state
from tidegate.serving.http.problems import Problem, not_found, unfit
from tidegate.serving.http.routing import Answer
from tidegate.serving.http.schemas import (
    CatalogBody,
    DecisionBody,
    FlowBody,
    LimitBody,
    Quantity,
    TierBody,
    VersionBody,
    exact,
)
from tidegate.serving.views.formatting import US, instant
from tidegate.settings.durations import format_duration

HEADER_MAX: Final = 10**15 - 1


def json(status: int, body: Any, **headers: str) -> Answer:
    """Return an answer in JSON; headers are written with _ for -."""
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Answer(status, msgspec.json.encode(body), headers=pairs)


def amount(quantity: Quantity) -> int | Decimal:
    """Convert a quantity to the domain's type."""
    if isinstance(quantity, int):
        return quantity
    if isinstance(quantity, float):
        return whole(quantity, "quantity", QUANTITY_MAX)
    if quantity.endswith("\n"):
        # Which `$` in a pattern lets pass.
        raise unfit("quantity: needs digits, got a line break")
    return Decimal(quantity)


def whole(number: float, name: str, most: int, least: int = 0) -> int:
    """Return the number if it is whole: a fraction in a float may not be what was meant."""
    if number != int(number):
        raise unfit(f'{name}: needs a whole number, or a decimal as text such as "0.5", got {number!r}')
    if not least <= number <= most:
        raise unfit(f"{name}: needs {least} to {most}, got {number:g}")
    return int(number)


def maybe(quantity: Decimal | None) -> str | None:
    return None if quantity is None else exact(quantity)


def when(at: int | None) -> str | None:
    return None if at is None else instant(at)


def at_of(text: str, name: str) -> int:
    """Return an instant that was sent, in µs since the epoch."""
    try:
        return parse(text)
    except ValueError as error:
        raise unfit(f"{name}: {error}") from None


def asked_at(text: str) -> int:
    """Return an instant that usage is asked of; a Problem of status 404 where no event can have it."""
    at = at_of(text, "at")
    if not MIN_AT <= at < MAX_AT:
        raise not_found(f"at: there is usage from 2000-01-01 to 2099-12-31 only, none at {text}")
    return at


def decision_body(decision: Decision) -> DecisionBody:
    return DecisionBody(
        decision.customer,
        decision.meter,
        decision.scope,
        decision.allowed,
        decision.reason,
        maybe(decision.used),
        maybe(decision.reserved),
        maybe(decision.limit),
        maybe(decision.remaining),
        when(decision.resets_at),
        when(decision.as_of),
        None if decision.lag is None else decision.lag / US,
        decision.catalog,
        decision.denied_in_shadow,
        decision.degraded,
        decision.detail,
    )


def flow_body(state: FlowState) -> FlowBody:
    lag = None if state.lag is None else state.lag / US
    return FlowBody(
        "live" if state.is_live else "behind", lag, state.shards, state.behind, describe_state(state)
    )


def rate_headers(decision: Decision, now: int) -> list[tuple[str, str]]:
    """`RateLimit`, `RateLimit-Policy` and, on a denial, `Retry-After`; whole numbers, cut off, of 15 digits at most.

    Source: draft-ietf-httpapi-ratelimit-headers-10; RFC 9651 section 3.3.1 for the digits.
    """
    headers = [] if decision.lag is None else [("tidegate-lag", f"{decision.lag / US:.3f}")]
    if decision.degraded:
        headers.append(("tidegate-degraded", decision.reason))
    again = decision.resets_at if decision.retry_at is None else decision.retry_at
    resets = None if again is None else max(-(-(again - now) // US), 0)
    if decision.limit is not None and decision.remaining is not None:
        # A structured field's text is ASCII without quotes; spend has no meter.
        name = _token(decision.meter) or "spend"
        reset = "" if resets is None else f";t={resets}"
        headers.append(("ratelimit-policy", f'"{name}";q={_integer(decision.limit)}'))
        headers.append(("ratelimit", f'"{name}";r={_integer(decision.remaining)}{reset}'))
    if not decision.allowed and (resets is not None or decision.degraded):
        headers.append(("retry-after", "1" if decision.degraded or resets is None else str(max(resets, 1))))
    return headers


def denied(decision: Decision, now: int, status: int = 429) -> Problem:
    """Return the problem for a denied request."""
    words = f"{decision.meter or 'spend'}: {decision.reason}"
    if decision.limit is not None:
        words += f", {exact(decision.used or 0)} of {exact(decision.limit)} used"
        words += f", {exact(decision.reserved)} reserved" if decision.reserved else ""
    return Problem(
        status,
        "cap-reached" if decision.reason == "cap_reached" else "denied",
        words,
        headers=dict(rate_headers(decision, now)),
        decision=decision_body(decision),
    )


def limit_body(limit: Limit) -> LimitBody:
    return LimitBody(
        maybe(limit.included),
        maybe(limit.cap),
        limit.on_cap,
        exact(limit.grace_pct),
        limit.fail,
        "off" if limit.max_lag is None else format_duration(timedelta(microseconds=limit.max_lag)),
        limit.shadow,
        [label(threshold) for threshold in limit.thresholds],
        exact(limit.hysteresis_pct),
        [TierBody(maybe(tier.up_to), exact(tier.price)) for tier in limit.tiers],
    )


def label(threshold: Threshold) -> str:
    """As alerts have it: `80%`, or the quantity."""
    if threshold.percent is not None:
        return f"{format_plain(threshold.percent)}%"
    return format_plain(threshold.absolute)


def version_body(version: CatalogVersion) -> VersionBody:
    return VersionBody(version.number, instant(version.applied_at), version.origin, version.by, version.note)


def catalog_body(version: CatalogVersion) -> CatalogBody:
    return CatalogBody(
        version.number, instant(version.applied_at), version.origin, version.by, version.note, version.text
    )


def bodies(notes: list[Note]) -> list[dict[str, Any]]:
    """Return the content of notes as it was written."""
    return [msgspec.json.decode(note.body, type=dict[str, Any]) for note in notes]


def _integer(quantity: Decimal) -> int:
    return min(int(quantity), HEADER_MAX)


def _token(name: str) -> str:
    return "".join(
        letter for letter in name if letter.isascii() and letter.isprintable() and letter not in '"\\'
    )
