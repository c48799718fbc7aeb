"""What people and repairs do to events in the outbox: send again, restore, give up. Each act is written down."""

from collections.abc import Iterable, Sequence

from tidegate.connectors.outbox.outbox_file import OutboxFile
from tidegate.connectors.outbox.schema import ADD, HELD_BACK, State
from tidegate.operators.model.records import Accepted

_ACT = "INSERT INTO acts (at, by, act, id, reason) VALUES (?, ?, ?, ?, ?)"


def retry(outbox: OutboxFile, ids: Iterable[str], *, by: str, why: str = "") -> list[str]:
    """Have events that are parked, refused or acknowledged wait again, under the same ids; return those found.

    What the provider has already it ignores. Needs their bytes, which are kept 15 minutes of what is acknowledged.
    """
    query = """UPDATE events SET state = 0, settled_at = NULL, hold_until = 0, reason = '', detail = ''
        WHERE id = ? AND state = ? AND body IS NOT NULL"""
    return _act(outbox, "retry", query, (*HELD_BACK, State.acknowledged), State.waiting, ids, by, why)


def restore(outbox: OutboxFile, events: Sequence[Accepted], *, by: str, why: str) -> list[str]:
    """Have events wait again that were acknowledged, and maybe forgotten since; return those that do now.

    Each once for one `why`, however often it is asked. What the provider has already it ignores.
    """
    restored = []
    asked = "SELECT 1 FROM acts WHERE act = 'restore' AND id = ? AND reason = ?"
    query = """UPDATE events SET state = 0, body = ?, settled_at = NULL, hold_until = 0, reason = '', detail = ''
        WHERE id = ? AND state = 1"""
    with outbox.transaction(durable=True) as db:
        now, running = outbox.clock(), outbox.meta("running")
        for event in events:
            if db.execute(asked, (event.id, why)).fetchone():
                continue
            if not outbox.move_counts(db.execute(query, (event.payload, event.id)), State.acknowledged):
                waiting = int(State.waiting)
                row = (event.id, event.customer, event.at, waiting, event.payload, now, running)
                if not db.execute(ADD, row).rowcount:
                    continue
                outbox.count(now_waiting=1)
            restored.append(event.id)
            db.execute(_ACT, (now, by, "restore", event.id, why))
        outbox.count(restored=len(restored))
    return restored


def drop(outbox: OutboxFile, ids: Iterable[str], *, by: str, why: str) -> list[str]:
    """Give up events that are parked or refused, for good; return those found."""
    query = "UPDATE events SET state = 4, body = NULL WHERE id = ? AND state = ?"
    return _act(outbox, "drop", query, HELD_BACK, State.skipped, ids, by, why)


def _act(
    outbox: OutboxFile,
    act: str,
    query: str,
    states: Iterable[State],
    after: State,
    ids: Iterable[str],
    by: str,
    why: str,
) -> list[str]:
    found = []
    with outbox.transaction() as db:
        now = outbox.clock()
        for id in ids:
            if any(outbox.move_counts(db.execute(query, (id, int(state))), state, after) for state in states):
                found.append(id)
                db.execute(_ACT, (now, by, act, id, why))
        outbox.count(**{f"{act}_by_hand": len(found)})
    return found
