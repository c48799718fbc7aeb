"""The upgrade of docs/operations.md: stop all processes of a cluster, start all of the new version."""

import signal
from pathlib import Path

import msgspec
import pytest

from tests.flows.conftest import Place
from tests.flows.meter.test_control_source import FOLLOWED, eventually, has_totals
from tests.flows.meter.test_metering import COUNTERS, FIRST, SECOND
from tests.flows.runtime.test_shutdown import ended
from tests.support.ports import free_addresses
from tidegate.connectors.files.locks import is_held
from tidegate.flows.runtime import recorded_settings

TWO = FOLLOWED | {"RECOVERY_PARTS": "2"}


class Older(Place):
    """The same folder, run by a program that says it is an earlier version."""

    def environment(self, **settings: str) -> dict[str, str]:
        found = super().environment(**settings)
        about = self.folder / "older" / "tidegate-0.0.9.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tidegate\nVersion: 0.0.9\n")
        return found | {"PYTHONPATH": f"{about.parent}:{found['PYTHONPATH']}"}


@pytest.fixture
def older(tmp_path: Path) -> Older:
    return Older(tmp_path)


def set_format(place: Place, number: int) -> None:
    """As a program whose state has this format leaves the folder."""
    path = place.folder / "state" / "recovery" / recorded_settings.FILE
    made = msgspec.json.decode(path.read_bytes(), type=recorded_settings.Recorded)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(made, format=number)))


def test_a_cluster_is_upgraded_by_stopping_all_and_starting_all(place: Place, older: Older) -> None:
    place.append("first.jsonl")
    addresses = ";".join(free_addresses(2))
    with (
        older.running("-i", "0", "-a", addresses, **TWO) as first,
        older.running("-i", "1", "-a", addresses, **TWO) as second,
    ):
        eventually(lambda: has_totals(place) and place.periods() == FIRST)
        # A rolling update: one of the new version beside one of the old.
        with place.started("-i", "1", "-a", addresses, **TWO) as mixed:
            code, said = ended(mixed)
        assert code == 1 and "process 1" in said
        first.send_signal(signal.SIGTERM)
        assert [ended(one)[0] for one in (first, second)] == [0, 0], "one that is stopped stops all"
    set_format(place, 0)
    with older.running("-i", "0", "-a", addresses, **TWO):
        eventually(lambda: is_held(place.folder / "state" / "process-0.lock"))
        with place.started("-i", "1", "-a", addresses, **TWO) as mixed:
            code, said = ended(mixed)
    assert code == 1 and "a process of version 0.0.9 runs on it" in said and "Traceback" not in said
    place.append("second.jsonl")
    place.run_processes(2, RECOVERY_PARTS="2")
    assert place.periods() == SECOND
    made = recorded_settings.read(place.folder / "state" / "recovery")
    assert made.format == recorded_settings.FORMAT, "taken over"


def test_a_program_refuses_the_state_of_a_newer_one_with_a_line(place: Place) -> None:
    place.append("first.jsonl")
    place.run()
    assert place.counters() == COUNTERS
    set_format(place, recorded_settings.FORMAT + 1)
    said = place.refused()
    assert "written by a newer version of Tidegate" in said and len(said.strip().splitlines()) == 1
    set_format(place, recorded_settings.FORMAT)
    place.append("second.jsonl")
    place.run()
    assert place.periods() == SECOND
