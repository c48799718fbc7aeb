"""Programs of two versions on one state: refused where they cannot read each other, migrated where they can."""

import fcntl
from pathlib import Path

import msgspec
import pytest

from tidegate.flows.runtime import recorded_settings, recovery
from tidegate.flows.runtime.recovery import RecoveryError


def test_state_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = recovery.prepare(tmp_path, 1, 4)
    file = folder / recorded_settings.FILE
    newer = msgspec.json.encode(
        {"shards": 4, "recovery_parts": 1, "format": recorded_settings.FORMAT + 1, "more": True}
    )
    file.write_bytes(newer)
    with pytest.raises(RecoveryError, match="written by a newer version"):
        recovery.prepare(tmp_path, 1, 4)
    assert file.read_bytes() == newer


def test_state_of_an_older_version_is_taken_over(tmp_path: Path) -> None:
    folder = recovery.prepare(tmp_path, 1, 4)
    (folder / recorded_settings.FILE).write_bytes(msgspec.json.encode({"shards": 4, "recovery_parts": 1}))
    recovery.prepare(tmp_path, 1, 4)
    assert recorded_settings.read(folder) == recorded_settings.Recorded(4, 1, recorded_settings.FORMAT)


@pytest.mark.parametrize(("other", "refused"), [("0.0.1", True), (recovery._VERSION, False)])
def test_a_cluster_is_of_one_version(
    other: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_HELD", [])
    monkeypatch.setattr("sys.argv", ["bytewax.run", "-i", "1"])
    (tmp_path / "process-2.lock").write_text("0.0.0")
    with (tmp_path / "process-0.lock").open("w") as running:
        running.write(other)
        running.flush()
        fcntl.flock(running, fcntl.LOCK_EX)
        if refused:
            with pytest.raises(RecoveryError, match=r"a process of version 0\.0\.1 runs on it"):
                recovery.hold(tmp_path)
        else:
            recovery.hold(tmp_path)
    for lock in recovery._HELD:
        lock.close()
