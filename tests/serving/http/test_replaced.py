"""A service goes on by itself when its store's file was replaced, and says which catalog it could not use."""

import time
from collections.abc import Callable
from contextlib import closing, suppress

import httpx
import pytest

from tests.serving.http.served import CATALOG, Served

YAML = {"if-match": '"1"', "content-type": "application/yaml"}
FILES = ("", "-wal", "-shm")
READS = ("/v1/explain/acme/calls", "/v1/overview", "/v1/catalog", "/v1/alerts", "/v1/customers/acme/usage")


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while True:
        with suppress(httpx.HTTPError, KeyError):
            if is_so():
                return
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("back", ["created by the flow", "put back"])
def test_every_page_reads_the_store_that_is_there_now(alone: Served, back: str) -> None:
    alone.start()
    client = alone.client()
    assert [client.get(path).status_code for path in READS] == [200] * len(READS)
    first = client.get("/v1/catalog").json()["applied_at"]
    files = [alone.store.with_name(alone.store.name + end) for end in FILES]
    for file in files:
        file.rename(alone.folder / file.name)
    eventually(lambda: client.get("/readyz?check=service").status_code == 503)
    if back == "put back":
        for file in files:
            (alone.folder / file.name).rename(file)
    else:
        alone.writer().close()
    # Until the service has looked, it says that the store is away; then everything is there at its first request.
    eventually(lambda: client.get("/readyz?check=service").status_code == 200)
    assert [client.get(path).status_code for path in READS] == [200] * len(READS)
    again = client.get("/v1/catalog").json()["applied_at"]
    assert again == first if back == "put back" else again > first


def test_nothing_that_runs_puts_an_empty_store_in_the_place_of_one_that_went_away(alone: Served) -> None:
    """It would let everybody through, and what is put back over it would be damaged by its log."""
    alone.start()
    client = alone.client()
    for end in FILES:
        alone.store.with_name(alone.store.name + end).rename(alone.folder / f"away{end}")
    eventually(
        lambda: "cannot be followed" in (log := (alone.folder / "serve.log").read_text()) and "no such" in log
    )
    assert [client.get(path).status_code for path in READS] == [503] * len(READS)
    assert client.put("/v1/catalog", content=CATALOG + "# Better.\n", headers=YAML).status_code == 503
    check = client.get("/v1/check?customer=acme&meter=calls").json()
    assert check["reason"] == "unavailable"
    assert not [file for end in FILES if (file := alone.store.with_name(alone.store.name + end)).exists()]


def test_a_file_that_is_wrong_at_a_start_is_named_while_the_last_good_version_holds(alone: Served) -> None:
    with closing(alone.control()) as control:
        control.apply(CATALOG, origin="cli", by="test")
    (alone.folder / "catalog.yaml").write_text("meters: [{name: calls}]\n")
    alone.start()
    client = alone.client()
    ready = client.get("/readyz")
    assert ready.status_code == 200 and "catalog.yaml" in ready.json()["catalog_problem"]
    assert "tidegate_catalog_refused 1.0" in client.get("/metrics").text
    assert client.get("/v1/check?customer=acme&meter=calls&quantity=1001").json()["allowed"] is False
    # The next good version ends it.
    put = client.put("/v1/catalog", content=CATALOG + "# Better.\n", headers=YAML)
    assert put.status_code == 200
    eventually(lambda: client.get("/readyz").json()["catalog_problem"] == "")


def test_without_any_good_catalog_the_service_is_not_ready(alone: Served) -> None:
    (alone.folder / "catalog.yaml").write_text("meters: [{name: calls}]\n")
    alone.start()
    client = alone.client()
    ready = client.get("/readyz")
    assert ready.status_code == 503 and "no catalog that can be used" in ready.json()["detail"]
    assert "catalog.yaml" in ready.json()["detail"]
