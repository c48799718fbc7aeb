"""What was answered with 202 is metered, once: the service is killed under load, and then the flow reads its log."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.http.local import local
from tests.serving.http.served import Served, die_with
from tidegate.connectors.log.writer import LogWriter
from tidegate.operators.model.ports import IngestError
from tidegate.serving.http.state import Service

KILLS = 3
SENDERS = 4
BATCH = 5
URL = "/v1/events"


def event(id: str) -> dict[str, Any]:
    return {
        "event_id": id,
        "customer_id": f"c{hash(id) % 3}",
        "event_name": "llm.tokens",
        "timestamp": datetime.now(UTC).isoformat(),
        "metadata": {"tokens": 1},
    }


def logged(served: Served) -> list[str]:
    """The ids in whole lines of the log."""
    segments = sorted((served.folder / "data" / "ingest" / "0").glob("*.ndjson"))
    whole = b"".join(segment.read_bytes().rpartition(b"\n")[0] + b"\n" for segment in segments)
    return [json.loads(line)["event_id"] for line in whole.splitlines() if line]


def meter(served: Served) -> dict[str, int]:
    """What the flow makes of the log, to its end: the totals per customer of this month, summed."""
    me = os.getpid()
    flow = subprocess.Popen(
        [sys.executable, "-m", "bytewax.run", "tidegate.flows.metering"],
        cwd=served.folder,
        env=served.environment()
        | {"TIDEGATE_SOURCE": "log:data/ingest/?follow=false", "TIDEGATE_EPOCH": "1s"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: die_with(me),
    )
    _, said = flow.communicate(timeout=60)
    assert flow.returncode == 0, said.decode()[-2000:]
    with closing(served.reader()) as reader:
        counters: dict[str, int] = {}
        for counter in reader.counters():
            counters[counter.name] = counters.get(counter.name, 0) + counter.value
        counters["total"] = sum(
            int(one.total.total) for one in reader.totals() if one.total.window == "period"
        )
    return counters


def test_what_was_answered_for_is_metered_once_however_often_it_is_killed(alone: Served) -> None:
    alone.start()
    answered: set[str] = set()
    tries = threading.Lock(), [0]
    stop = threading.Event()
    headers = {"x-api-key": alone.tokens["ingest"]}

    def send(sender: int) -> None:
        """Batches, one after the other, each until it is answered."""
        number = 0
        with httpx.Client(base_url=alone.url, headers=headers, timeout=5, verify=False) as client:
            while not stop.is_set():
                number += 1
                batch = [event(f"{sender}-{number}-{i}") for i in range(BATCH)]
                while True:
                    with tries[0]:
                        tries[1][0] += 1
                    try:
                        if client.post(URL, json=batch).status_code == 202:
                            break
                    except httpx.TransportError:
                        pass
                    time.sleep(0.02)
                answered.update(one["event_id"] for one in batch)

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(SENDERS)]
    for thread in threads:
        thread.start()
    for _ in range(KILLS):
        before = len(answered)
        while len(answered) < before + 200:
            time.sleep(0.005)
        alone.kill()
        alone.start()
    stop.set()
    for thread in threads:
        thread.join()
    alone.kill()

    found = logged(alone)
    assert answered <= set(found)
    # Each life begins a segment of its own.
    assert len(list((alone.folder / "data" / "ingest" / "0").glob("*.ndjson"))) == KILLS + 1
    counters = meter(alone)
    assert counters["total"] == len(set(found)) == counters["accepted"]
    assert counters["events"] == len(found)
    assert counters.get("rejects", 0) == counters.get("conflicts", 0) == 0


def test_a_line_that_a_death_left_unfinished_is_nobodys(alone: Served) -> None:
    alone.start()
    client = alone.client()
    assert client.post(URL, json=event("before")).status_code == 202
    alone.kill()
    (segment,) = (alone.folder / "data" / "ingest" / "0").glob("*.ndjson")
    with segment.open("ab") as file:
        file.write(b'{"event_id":"torn","customer_id":"c')
    alone.start()
    assert alone.client().post(URL, json=event("after")).status_code == 202
    alone.stop()
    counters = meter(alone)
    assert (counters["events"], counters["accepted"], counters.get("rejects", 0)) == (2, 2, 0)


def test_a_second_service_does_not_write_the_same_lane(alone: Served) -> None:
    alone.start()
    second = subprocess.run(
        [sys.executable, "-m", "tidegate", "serve", "--listen", "127.0.0.1:0"],
        cwd=alone.folder,
        env=alone.environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode != 0
    assert "lanes" in second.stderr


def test_a_log_that_cannot_be_written_is_said_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told 503 sends again; nothing is answered with 202 that is not on disk."""
    with local(tmp_path) as here:
        assert here.client.post(URL, json=event("first")).status_code == 202
        writer = _writer(here.service)
        real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", _full)
        refused = here.client.post(URL, json=event("second"))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "free space" in refused.json()["detail"]
        monkeypatch.setattr(os, "fdatasync", real)
        assert here.client.post(URL, json=event("second")).status_code == 202
        # After a failed fsync no other would tell, so the segment is left.
        assert writer._number == 2
        served = here.served
    counters = meter(served)
    assert counters["total"] == 2


def test_many_waiting_share_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local(tmp_path) as here:
        assert here.client.post(URL, json=event("first")).status_code == 202
        syncs = []
        real, slow = os.fdatasync, threading.Event()

        def counted(fd: int) -> None:
            syncs.append(fd)
            slow.wait(0.2)
            real(fd)

        monkeypatch.setattr(os, "fdatasync", counted)
        statuses: list[int] = []

        def send(number: int) -> None:
            with here.client_of("all") as client:
                statuses.append(client.post(URL, json=event(f"shared-{number}")).status_code)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [202] * 20
        assert len(syncs) < 20
        served = here.served
    assert len(logged(served)) == 21


def _writer(service: Service) -> LogWriter:
    assert isinstance(service.ingest, LogWriter)
    return service.ingest


def _full(fd: int) -> None:
    raise OSError(28, "No space left on device")


def test_too_much_waiting_is_refused_and_not_kept_in_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        writer = LogWriter(tmp_path)
        whole = [b"x" * (1 << 20)] * 20
        first = asyncio.create_task(writer.put(whole, [""] * 20))
        await asyncio.sleep(0)
        with pytest.raises(IngestError, match="32 MiB wait"):
            await writer.put(whole, [""] * 20)
        await first
        await writer.put([b"after"], [""])
        await writer.close()

    asyncio.run(scenario())
    assert (tmp_path / "0" / "000000000001.ndjson").read_bytes().endswith(b"\nafter\n")
