"""Shards spread evenly over the workers of the Bytewax that we run on."""

import threading
from collections import Counter

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import TestingSink, TestingSource, cluster_main

from tidegate.operators.events.routing import list_shard_names, parse_shard_name


class Where(StatefulBatchLogic[str, int, None]):
    """Tells which worker's thread a key came to."""

    def on_batch(self, values: list[str]) -> tuple[list[int], bool]:
        return [threading.get_ident()], False

    def snapshot(self) -> None:
        return None


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
def test_no_worker_gets_more_than_its_share(workers: int) -> None:
    """Else the fullest one sets the pace for all."""
    names, found = list_shard_names(16), list[tuple[str, int]]()
    flow = Dataflow("routing")
    keyed = op.key_on("key", op.input("names", flow, TestingSource(names)), lambda name: name)
    op.output("out", op.stateful_batch("where", keyed, lambda _: Where()), TestingSink(found))
    cluster_main(flow, [], 0, worker_count_per_proc=workers)
    loads = Counter(worker for _, worker in found)
    assert len(found) == 16 and len(loads) == workers
    assert max(loads.values()) <= -(-16 // workers)


def test_a_name_tells_its_shard() -> None:
    assert [parse_shard_name(name) for name in list_shard_names(64)] == list(range(64))
