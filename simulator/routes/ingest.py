"""`POST /events/ingest`."""

import random

import msgspec

from simulator.billing.ingest_rules import BatchRules, read_events
from simulator.http.calls import Answer, Call, render_refusal
from simulator.http.faults import Fault
from simulator.state.platform import Platform
from simulator.state.problems import INVALID_PARAMETERS, Problem
from simulator.state.records import EventInput, StoredEvent


def ingest(platform: Platform, call: Call) -> Answer:
    """Check the batch by the provider's rules, and store all of it or, as switched, its valid events."""
    switches = platform.switches
    if len(call.body) > switches.max_body_bytes:
        limit = switches.max_body_bytes
        return render_refusal(
            Problem(413, "PAYLOAD_TOO_LARGE", f"needs {limit} bytes or less, got {len(call.body)}")
        )
    try:
        events = read_events(call.body)
    except Problem as unreadable:
        return _refused(platform, unreadable)
    if call.fault and call.fault.kind == "refuse" and (refused := _turned_down(call.fault, events)):
        return render_refusal(refused)._replace(events=len(events))
    rules = BatchRules(switches, platform.now, platform.customers, platform.events, platform.sums)
    good, problem = rules.judge(events)
    if problem and switches.atomic_batches:
        return _refused(platform, problem)._replace(events=len(events))
    if len(platform.events) + len(good) > switches.max_events:
        return render_refusal(
            Problem(503, "FULL", f"holds {switches.max_events} events; raise the switch max_events or reset")
        )
    stored = _store(platform, good, call.fault)
    if problem:
        return _refused(platform, problem)._replace(events=len(events), stored=stored)
    count = len(good) if switches.ingested_count_mode == "new_only" else len(events)
    return Answer(200, {"ingested_count": count}, events=len(events), stored=stored)


def _refused(platform: Platform, problem: Problem) -> Answer:
    if platform.switches.swap_400_422:
        problem.status = {400: 422, 422: 400}[problem.status]
    return render_refusal(problem)


def _turned_down(fault: Fault, events: list[EventInput]) -> Problem | None:
    for event in events:
        if fault.match in event.event_id:
            return Problem(fault.status or 400, INVALID_PARAMETERS, f"event {event.event_id!r} is refused")
    return None


def _store(platform: Platform, good: list[StoredEvent], fault: Fault | None) -> int:
    """Store the events except those that a fault loses, doubling those it doubles; return how many were stored."""
    if fault and fault.kind in ("drop", "double") and good:
        hit = random.Random(fault.draw).sample(range(len(good)), min(fault.events, len(good)))
        if fault.kind == "double":
            good = good + [msgspec.structs.replace(good[index]) for index in hit]
        else:
            good = [event for index, event in enumerate(good) if index not in set(hit)]
    platform.events.store(good)
    return len(good)
