"""What the flow writes is never its input, whatever it is called."""

import os
from pathlib import Path

import pytest

from tests.connectors.contracts.source import payloads_in, poll
from tidegate.connectors.files.ndjson import FileError, FileSink, FileSource
from tidegate.connectors.files.own_files import OwnFiles
from tidegate.flows.runtime import recovery


@pytest.fixture
def own(tmp_path: Path) -> OwnFiles:
    data = tmp_path / "data"
    (data / "billing").mkdir(parents=True)
    for name in ("dead.ndjson", "billing/00.ndjson", "tidegate.db", "deliveries-0.db-wal", "events.ndjson"):
        (data / name).write_bytes(b"line\n")
    return OwnFiles([data / "dead.ndjson", data / "billing", tmp_path / "later.ndjson"], data)


def names(tmp_path: Path) -> dict[str, Path]:
    """Other names of what the flow writes."""
    data = tmp_path / "data"
    (tmp_path / "link").symlink_to(data / "dead.ndjson")
    (tmp_path / "folder").symlink_to(data)
    (tmp_path / "dangling").symlink_to(tmp_path / "later.ndjson")
    os.link(data / "dead.ndjson", tmp_path / "hard")
    os.link(data / "billing" / "00.ndjson", tmp_path / "hard-inside")
    return {
        "itself": data / "dead.ndjson",
        "dots": data / "billing" / ".." / "dead.ndjson",
        "symbolic link": tmp_path / "link",
        "folder's link": tmp_path / "folder" / "dead.ndjson",
        "not there yet": tmp_path / "later.ndjson",
        "link to what is not there": tmp_path / "dangling",
        "hard link": tmp_path / "hard",
        "hard link into a folder": tmp_path / "hard-inside",
        "in a folder": data / "billing" / "00.ndjson",
        "store": data / "tidegate.db",
        "queue": data / "deliveries-0.db-wal",
    }


def test_every_name_is_known(tmp_path: Path, own: OwnFiles) -> None:
    assert [why for why, path in names(tmp_path).items() if not own.has(str(path))] == []
    assert not own.has(str(tmp_path / "data" / "events.ndjson"))
    assert not own.has(str(tmp_path / "data" / "billing.ndjson"))


def test_what_a_sink_wrote_under_earlier_settings_is_known(tmp_path: Path) -> None:
    """Also where its address has changed; what another flow wrote may be read."""
    for name in ("one", "two"):
        recovery.prepare(tmp_path / name, 1, 16)
        sink = FileSink(f"{tmp_path}/{name}.ndjson", recovery.lineage(tmp_path / name), sync=False)
        sink.build_part("out", "0", None).close()
    assert OwnFiles([], tmp_path / "one").has(f"{tmp_path}/one.ndjson")
    assert not OwnFiles([], tmp_path / "one").has(f"{tmp_path}/two.ndjson")


def test_where_output_is_redirected_to_is_known(tmp_path: Path) -> None:
    out = tmp_path / "out.ndjson"
    saved = os.dup(1)
    try:
        with out.open("wb") as file:
            os.dup2(file.fileno(), 1)
            assert OwnFiles().has(str(out))
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert not OwnFiles().has(str(out))


def test_a_glob_leaves_them_out_and_a_path_is_refused(
    tmp_path: Path, own: OwnFiles, caplog: pytest.LogCaptureFixture
) -> None:
    source = FileSource(f"{tmp_path}/data/*.ndjson", own=own)
    assert source.list_parts() == [f"{tmp_path}/data/events.ndjson"]
    assert "dead.ndjson, which its source leaves out" in caplog.text
    with pytest.raises(FileError, match="but what the flow itself writes"):
        FileSource(f"{tmp_path}/data/dead*", own=own).list_parts()
    with pytest.raises(FileError, match=r"dead.ndjson': is written by the flow itself; name another file"):
        FileSource(f"{tmp_path}/data/dead.ndjson", own=own).check()


def test_one_that_takes_the_name_of_a_followed_file_is_not_read(
    tmp_path: Path, own: OwnFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it end the flow."""
    path = tmp_path / "in.ndjson"
    partition = FileSource(str(path), follow=True, own=own).build_part("in", str(path), None)
    assert poll(partition) == []
    path.symlink_to(tmp_path / "data" / "dead.ndjson")
    assert poll(partition) == poll(partition) == []
    assert caplog.text.count("is written by the flow itself") == 1
    path.unlink()
    path.write_bytes(b"event\n")
    assert payloads_in(poll(partition) or []) == [b"event"]
    partition.close()
