"""Reconciliation runs in a process of their own, which is killed by SIGKILL: at a request, or around a write.

Time and the provider stay in the process of the test, `System`: the child asks it for each answer and each sleep, so
that a run is as repeatable as one within the test, and whatever happens meanwhile happens there.
"""

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import httpx

from tests.flows.reconcile.metered import KEY, READING, System

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.support.reconciler", "tidegate.flows.reconcile.dataflow"])

# Writes of a run, in the order in which it makes them: modules, classes, methods.
WRITES = (
    ("tidegate.connectors.reconciliation.repair_journal", "Journal", "plan"),
    ("tidegate.connectors.reconciliation.repairer", "Repairer", "_done"),
    ("tidegate.connectors.reconciliation.repair_journal", "Journal", "close"),
    ("tidegate.connectors.sqlite.store", "SqliteWriter", "write"),
    ("tidegate.connectors.reconciliation.findings", "Book", "settle"),
    ("tidegate.connectors.reconciliation.findings", "Book", "end"),
)


class Kill(NamedTuple):
    """Die at the `nth` request or write, before it is made or after."""

    at: str
    nth: int
    is_before: bool


def reconcile_apart(m: System, kill: Kill | None = None, **given: Any) -> int:
    """Make a run in a process of its own and return its exit code, negative for a signal."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_run, args=(theirs, m.clock.now, m.fields(**given), kill), daemon=True)
    process.start()
    theirs.close()
    m.clock.meanwhile = m.work
    asked = 0
    with ours, suppress(EOFError, ConnectionResetError, BrokenPipeError):
        while True:
            kind, body = ours.recv()
            asked += kind == "ask"
            is_fatal = kind == "ask" and kill is not None and (kill.at, kill.nth) == ("request", asked)
            if is_fatal and kill and kill.is_before:
                process.kill()
                break
            answer = None
            if kind == "ask":
                answer = _answer(m, body)
            else:
                m.clock.sleep(body)
            if is_fatal:
                process.kill()
                break
            ours.send((m.clock.now, answer))
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _answer(m: System, asked: tuple[str, str, list[tuple[str, str]], bytes]) -> tuple[Any, ...] | str:
    method, url, headers, content = asked
    try:
        answer = m.answer(httpx.Request(method, url, headers=headers, content=content))
    except httpx.TransportError as error:
        return str(error)
    return answer.status_code, answer.headers.multi_items(), answer.content


class _Parent(httpx.BaseTransport):
    """The test's process, from the child: its clock, and the platform."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection, self.now = connection, now

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self._ask("sleep", seconds)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked = request.method, str(request.url), request.headers.multi_items(), request.read()
        answer = self._ask("ask", asked)
        if isinstance(answer, str):
            raise httpx.ReadError(answer, request=request)
        status, headers, content = answer
        return httpx.Response(status, headers=headers, content=content, request=request)

    def _ask(self, kind: str, body: Any) -> Any:
        self._connection.send((kind, body))
        self.now, answer = self._connection.recv()
        return answer


def _run(connection: Connection, now: int, fields: dict[str, Any], kill: Kill | None) -> None:
    from bytewax.testing import run_main

    from tidegate.connectors.dodo.client import DodoClient
    from tidegate.flows.reconcile.dataflow import Outside, build
    from tidegate.settings.reconciliation import load_reconciliation_settings

    if kill is not None and kill.at == "write":
        _arm(kill)
    parent = _Parent(connection, now)

    def client(settings: Any) -> DodoClient:
        return DodoClient(
            "http://simulator", KEY, READING, clock=parent, wall=parent, sleep=parent.sleep, transport=parent
        )

    run_main(build(load_reconciliation_settings(fields), Outside(parent, parent.sleep, client)))


def _arm(kill: Kill) -> None:
    """Have the nth write of this process be its last act."""
    from importlib import import_module

    left = kill.nth

    def deadly(write: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(write)
        def act(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and kill.is_before:
                os.kill(os.getpid(), signal.SIGKILL)
            made = write(*given, **named)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        return act

    for module, owner, name in WRITES:
        of = getattr(import_module(module), owner)
        setattr(of, name, deadly(getattr(of, name)))
