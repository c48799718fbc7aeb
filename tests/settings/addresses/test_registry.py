"""Every address that can be written opens its connector with what it says and what a flow gives, and nothing else."""

import ast
import inspect
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from tests.support.places import ROOT
from tidegate.flows.meter.dataflow import offers_of
from tidegate.operators.model.ports import StoreError
from tidegate.settings.addresses.address import OFFERED, Address, load
from tidegate.settings.addresses.alerts import Alert, Delivered
from tidegate.settings.addresses.ingest import Ingest
from tidegate.settings.addresses.sinks import Billing, DeadLetters, ProviderAddress
from tidegate.settings.addresses.sources import Source
from tidegate.settings.addresses.stores import RedisStore, Store
from tidegate.settings.settings import load_settings

ROLES: Final[tuple[Any, ...]] = (Source, Store, DeadLetters, Billing, Alert, Ingest)


def addresses() -> Iterator[type[Address]]:
    for role in ROLES:
        union = get_args(role)[0]
        yield from (get_args(union) or (union,))


def subclasses(of: type[Address]) -> Iterator[type[Address]]:
    for one in of.__subclasses__():
        if one.__module__.startswith("tidegate."):
            yield one
            yield from subclasses(one)


def test_every_address_is_in_a_role() -> None:
    """One that no union names could not be written in any setting."""
    scheme = {one for one in subclasses(Address) if one.model_fields.get("scheme")}
    leaves = {one for one in scheme if not list(subclasses(one))}
    report = {one for one in leaves if one.__module__ == "tidegate.settings.reconciliation"}
    assert leaves - report == set(addresses())


@pytest.mark.parametrize("address", list(addresses()), ids=lambda one: one.__name__)
def test_a_connector_takes_what_its_address_has_and_needs(address: type[Address]) -> None:
    taken = inspect.signature(load(address.connector)).parameters
    assert address.needs <= OFFERED
    if issubclass(address, Delivered | ProviderAddress | RedisStore):
        return  # They are built from what the address works out of its fields.
    fields: dict[str, Any] = {name: "x" for name in address.model_fields if name in ("path", "hosts")}
    written = address.model_construct(**fields)
    given = set(written.arguments()) | address.needs
    assert given <= set(taken)
    assert {name for name, one in taken.items() if one.default is inspect.Parameter.empty} <= given
    # One that takes what a flow could give, and whose address does not say so, would silently go without.
    assert set(taken) & OFFERED <= given


def test_a_flow_offers_all_that_an_address_may_need() -> None:
    found = inspect.getsource(offers_of)
    assert {name for name in OFFERED if f'"{name}"' not in found} == set()


def test_flows_know_no_scheme() -> None:
    """What differs between connectors is said by their addresses."""
    for path in (ROOT / "flows").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr == "scheme"), path


@pytest.mark.parametrize("source", ["file:in/0/000000000001.ndjson", "log:in?follow=false"])
def test_a_poll_is_as_large_as_the_setting_says(source: str, tmp_path: Path) -> None:
    """Whatever the source: it bounds the memory of a poll, and how much is read again after a restart."""
    segment = tmp_path / "in" / "0" / "000000000001.ndjson"
    segment.parent.mkdir(parents=True)
    segment.write_bytes(b'{"id":"................................"}\n' * 1000)
    given: dict[str, Any] = {"source": source, "catalog": "catalog.yaml", "poll_bytes": 4096}
    settings = load_settings(given)
    opened = settings.source.open_in_flow(offers_of(settings))
    partition = opened.build_part("in", opened.list_parts()[0], None)
    blocks: list[bytes] = []
    with suppress(StopIteration):
        while True:
            blocks += [poll.block for poll in partition.next_batch()]
    assert b"".join(blocks) == segment.read_bytes()
    assert max(map(len, blocks)) <= 4096 < sum(map(len, blocks))


def test_no_end_of_a_store_makes_the_store(tmp_path: Path) -> None:
    """Only `make` does, at a start: an empty store in the place of one that is away would forget all usage."""
    store = load_settings({"source": "file:-", "store": f"sqlite:{tmp_path}/tidegate.db"}).store
    opener = store.writer_process_opener()
    assert opener is not None
    for open_end in (store.open, store.open_control, store.open_reader, opener):
        with pytest.raises(StoreError, match="no such file"):
            open_end()
    with pytest.raises(StoreError, match="no such file"), closing(store.open_writer(resumed=True)):
        pass
    holds = store.open_holds()
    with pytest.raises(StoreError, match="no such file"):
        holds.heartbeats()
    assert not list(tmp_path.iterdir())
    store.make()
    for open_end in (store.open, store.open_control, store.open_reader, opener):
        open_end().close()
    assert holds.heartbeats() == []
    holds.close()
