"""A service that is started before the flow has made the store."""

import time
from pathlib import Path

from tests.serving.http.served import Served
from tests.support.heartbeats import ENDED


def test_it_becomes_ready_when_a_flow_reports_though_nobody_has_checked(tmp_path: Path) -> None:
    served = Served(tmp_path, start=False)
    served.store.rename(tmp_path / "later.db")
    served.start()
    try:
        with served.client() as client:
            # Longer than the service waits for the store as it starts.
            time.sleep(2.5)
            assert client.get("/readyz").status_code == 503
            (tmp_path / "later.db").rename(served.store)
            writer = served.writer()
            writer.write([], [], heartbeats=[ENDED])
            writer.close()
            until = time.monotonic() + 60
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < until
                time.sleep(0.05)
    finally:
        served.stop()
