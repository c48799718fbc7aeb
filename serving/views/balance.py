"""The counters of all shards added up, and whether every event is accounted for."""

from collections.abc import Iterable, Mapping
from operator import itemgetter

from tidegate.operators.model.records import Counter

ENDS = ("rejects", "too_late", "duplicates", "conflicts", "accepted")
"""How an event may end; each event ends in one of these ways."""
ACCEPTED = ("metered", "unmetered", "unclassified")
"""How an accepted event may be counted; the last is by a version that did not distinguish the other two."""


def summed(counters: Iterable[Counter]) -> dict[str, int]:
    """Each counter over all shards, by name: the ends of events first, then what is counted per meter."""
    sums = dict.fromkeys(("events", *ENDS), 0)
    for counter in sorted(counters, key=itemgetter(1)):
        sums[counter.name] = sums.get(counter.name, 0) + counter.value
    return sums


def unbalanced(sums: Mapping[str, int]) -> list[str]:
    """Where the law of conservation does not hold, a line each: `events 10 = 9, the sum of …`. Normally none."""
    found = [] if sums["events"] == sum(map(sums.__getitem__, ENDS)) else [law(sums)]
    metered, unmetered, old = (sums.get(name, 0) for name in ACCEPTED)
    # A store that only a version before these counters wrote has none of them.
    if not sums.keys().isdisjoint(ACCEPTED) and sums["accepted"] != metered + unmetered + old:
        found.append(
            f"accepted {sums['accepted']:,} ≠ metered {metered:,} + unmetered {unmetered:,}"
            + (f" + unclassified {old:,}" if old else "")
        )
    for name, matching in sums.items():
        kind, _, meter = name.partition(":")
        if kind == "matching":
            counted, corrected = sums.get(f"counted:{meter}", 0), sums.get(f"corrected:{meter}", 0)
            if matching != counted + corrected:
                found.append(
                    f"{meter}: matching {matching:,} ≠ counted {counted:,} + corrected {corrected:,}"
                )
    return found


def law(sums: Mapping[str, int]) -> str:
    """Return the law in numbers: `events 10 = rejects 1 + … + accepted 9`."""
    ends = [f"{end.replace('_', ' ')} {sums[end]:,}" for end in ENDS]
    sign = "=" if sums["events"] == sum(map(sums.__getitem__, ENDS)) else "≠"
    return f"events {sums['events']:,} {sign} {' + '.join(ends)}"
