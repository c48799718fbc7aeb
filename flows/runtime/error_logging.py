"""Errors that end a worker are logged by it.

Bytewax raises them in the main thread of their process, but not in a cluster: there Timely's threads panic on the way,
and all that is left of the error is "Send thread panic".

A process that runs a flow by itself (`end_at_once`) ends there and then where the error says all that there is to say:
what Rust and Python would add are pages about their own insides. It is the same as a kill, which everything that is
written is made for. Our own bugs keep their traceback.

Source: `cluster_main` in Bytewax 0.21's src/run.rs, and what Timely's `MergeQueue` and `CommsGuard` do when dropped.
"""

import errno
import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from tidegate.connectors.engine import (
    DynamicSink,
    FixedPartitionedSink,
    StatefulSinkPartition,
    StatelessSinkPartition,
)
from tidegate.operators.model.errors import TidegateError
from tidegate.settings.addresses.extras import missing

_FULL: Final = "; free space and start again, nothing that was written is lost"
_LOG = logging.getLogger("tidegate.flow")

_ends_at_once = False

P = ParamSpec("P")
R = TypeVar("R")


def end_at_once() -> None:
    """Have errors that are explained end this process, once they are logged."""
    global _ends_at_once
    _ends_at_once = True


def explained(error: BaseException) -> str | None:
    """Return an error of the world in one line; None where it is a bug, whose traceback is wanted."""
    if isinstance(error, TidegateError):
        return str(error)
    if isinstance(error, ImportError):
        return missing(error)
    if isinstance(error, sqlite3.OperationalError):
        return f"{error}{_FULL if 'full' in str(error) else ''}"
    if isinstance(error, OSError) and error.errno is not None:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return f"{what}{_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else ''}"
    return None


@contextmanager
def end_in_one_line() -> Iterator[None]:
    """End the process with 1 and one line where the block fails for a reason outside of it; a bug is raised."""
    try:
        yield
    except Exception as error:
        words = explained(error)
        if words is None:
            raise
        sys.exit(words)


def log_errors(call: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function that Bytewax calls on a worker so that its errors are logged; StopIteration is none."""

    @wraps(call)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except StopIteration:
            raise
        except Exception as error:
            words = explained(error)
            _LOG.error("the flow ends: %s", words or repr(error), exc_info=words is None)
            if words is not None and _ends_at_once:
                logging.shutdown()
                sys.stdout.flush()
                os._exit(1)
            raise

    return reporting


def log_sink_errors(sink: FixedPartitionedSink[Any, Any] | DynamicSink[Any]) -> Any:
    """Wrap a sink so that its errors are logged."""
    return _Sink(sink) if isinstance(sink, FixedPartitionedSink) else _StatelessSink(sink)


class _Sink(FixedPartitionedSink[Any, Any]):
    def __init__(self, sink: FixedPartitionedSink[Any, Any]) -> None:
        self._sink = sink

    @log_errors
    def list_parts(self) -> list[str]:
        return self._sink.list_parts()

    def part_fn(self, item_key: str) -> int:
        return self._sink.part_fn(item_key)

    @log_errors
    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> "_Partition":
        return _Partition(self._sink.build_part(step_id, for_part, resume_state))


class _Partition(StatefulSinkPartition[Any, Any]):
    def __init__(self, partition: StatefulSinkPartition[Any, Any]) -> None:
        self._partition = partition

    @log_errors
    def write_batch(self, values: list[Any]) -> None:
        self._partition.write_batch(values)

    @log_errors
    def snapshot(self) -> Any:
        return self._partition.snapshot()

    @log_errors
    def close(self) -> None:
        self._partition.close()


class _StatelessSink(DynamicSink[Any]):
    def __init__(self, sink: DynamicSink[Any]) -> None:
        self._sink = sink

    @log_errors
    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_StatelessPartition":
        return _StatelessPartition(self._sink.build(step_id, worker_index, worker_count))


class _StatelessPartition(StatelessSinkPartition[Any]):
    def __init__(self, partition: StatelessSinkPartition[Any]) -> None:
        self._partition = partition

    @log_errors
    def write_batch(self, items: list[Any]) -> None:
        self._partition.write_batch(items)

    @log_errors
    def close(self) -> None:
        self._partition.close()
