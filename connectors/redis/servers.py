"""Which Redis servers there are, how they are reached, and what to do where they refuse.

Which server has a slot is found out here: there is one, or Sentinel names the primary, or the nodes of a cluster have
their parts. Connections are redis-py's, with hiredis. None of them tries again by itself.

Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/ and
https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

import random
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, Protocol

from redis import Connection, SSLConnection
from redis import exceptions as errors

from tidegate.operators.model.errors import one_line
from tidegate.operators.model.ports import StoreError, StoreIncomplete, StoreRefused

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
SLOTS: Final = 16_384

AGAIN: Final = (
    errors.ConnectionError, errors.TimeoutError, errors.ClusterDownError, errors.AskError, errors.TryAgainError,
    errors.ReadOnlyError,
)  # fmt: skip
# Replies by their first word, where redis-py has no class for them.
AGAIN_WORDS: Final = (
    "LOADING",
    "MASTERDOWN",
    "NOREPLICAS",
    "BUSY",
    "UNBLOCKED",
    "CLUSTERDOWN",
    "NOGOODSLAVE",
)
FINAL: Final = (errors.AuthenticationError, errors.AuthorizationError)

ADVICE: Final[Sequence[tuple[type[Exception], str]]] = (
    (
        errors.NoPermissionError,
        "grant this user what docs/connectors.md lists, for keys that begin with the prefix",
    ),
    (errors.AuthenticationError, "check user and password in the address"),
    (
        errors.OutOfMemoryError,
        "raise the server's maxmemory, or keep hours, days and periods for a shorter time",
    ),
    (errors.MovedError, "this server is part of a cluster; begin the address with redis+cluster:"),
    (errors.ReadOnlyError, "this is a replica; name the primary, or begin the address with redis+sentinel:"),
)
ADVICE_BY_WORD: Final = {
    "MISCONF": "the server cannot write its own file; free space on its disk",
    "WRONGTYPE": "keys of something else begin with this prefix; choose another",
}

Place = tuple[str, int]
"""A server's host and port."""


class Wire(Protocol):
    """What is used of redis-py's connections. All raise RedisError; an error for an answer is raised too."""

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def pack_commands(self, commands: Sequence[Sequence[Any]]) -> list[bytes]: ...
    def send_packed_command(self, command: list[bytes], check_health: bool) -> None: ...
    def send_command(self, *words: Any, check_health: bool) -> None: ...
    def read_response(self, *, disable_decoding: bool, push_request: bool = False) -> Any: ...
    def can_read(self, timeout: float) -> bool: ...


@dataclass(frozen=True)
class Servers:
    """Where the servers are, who we are to them, and how long to wait. `hosts` are names and ports (None: usual).

    For `sentinel` the hosts are Sentinels and `service` names the primary; for `cluster` they are some of its nodes.
    """

    hosts: Sequence[tuple[str, int | None]]
    form: Literal["single", "sentinel", "cluster"] = "single"
    service: str = ""
    db: int = 0
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_user: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    timeout: timedelta = timedelta(seconds=5)
    wait: timedelta = timedelta(seconds=60)

    def __post_init__(self) -> None:
        if self.tls:
            self._check_files()

    def __str__(self) -> str:
        names = ",".join(name if port is None else f"{name}:{port}" for name, port in self.hosts)
        return f"{names}/{self.service}" if self.service else names

    def _check_files(self) -> None:
        """Raise StoreRefused where a file that TLS needs cannot be used, as connections would not say which."""
        context = ssl.create_default_context()
        named = f"ca {self.ca!r}"
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            named = f"cert {self.cert!r} with key {self.key!r}"
            if self.cert is not None:
                # The password of a key that needs one cannot be given, and must not be asked for on a terminal.
                context.load_cert_chain(self.cert, self.key, password="")
        except OSError as error:
            reason = error.strerror or error
            raise StoreRefused(f"store {self}: {named}: cannot be used ({reason}); name a PEM file") from None

    def connection(self, host: str, port: int, *, sentinel: bool = False, **more: Any) -> Wire:
        """Return a connection that opens at its first use and never retries by itself. `more` is as of redis-py."""
        seconds = self.timeout.total_seconds()
        given: dict[str, Any] = {
            "host": host,
            "port": port,
            "db": 0 if sentinel else self.db,
            "username": self.sentinel_user if sentinel else self.user,
            "password": self.sentinel_password if sentinel else self.password,
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "socket_keepalive": True,
            "protocol": 2,
            "driver_info": None,
        } | more
        if not self.tls:
            return Connection(**given)
        files: dict[str, Any] = {"ssl_ca_certs": self.ca, "ssl_certfile": self.cert, "ssl_keyfile": self.key}
        return SSLConnection(**files, **given)

    def connected(self, place: Place, **more: Any) -> Wire:
        """Return a connection to a server that takes writes."""
        connection = self.connection(*place, **more)
        try:
            _connect(connection)
            if self.form == "sentinel" and _asked(connection, "ROLE")[0] != b"master":
                raise errors.ConnectionError(f"{place[0]}:{place[1]} is no primary yet")
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def look_up(self, known: Iterable[Place] = ()) -> list[tuple[int, Place]]:
        """Return the first slot of each range and its server, the ranges in order and without gaps.

        `known` are nodes that there were in the cluster, for when none of those in the address answers.
        """
        hosts = list(self.hosts)
        if self.form == "single":
            return [(0, (hosts[0][0], hosts[0][1] or PORT))]
        failure: Exception = errors.ConnectionError("no host is named")
        for name, port in (*random.sample(hosts, len(hosts)), *known):
            try:
                return (
                    self._ask_sentinel(name, port) if self.form == "sentinel" else self._ask_node(name, port)
                )
            except (*AGAIN, errors.ResponseError) as error:
                failure = error
        raise failure

    def _ask_sentinel(self, name: str, port: int | None) -> list[tuple[int, Place]]:
        with _released(self.connection(name, port or SENTINEL_PORT, sentinel=True)) as connection:
            found = _asked(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        if not found:
            raise errors.ConnectionError(f"Sentinel {name} knows no primary {self.service!r}")
        return [(0, (found[0].decode(), int(found[1])))]

    def _ask_node(self, name: str, port: int | None) -> list[tuple[int, Place]]:
        with _released(self.connection(name, port or PORT)) as connection:
            ranges = _asked(connection, "CLUSTER", "SLOTS")
        # A node that does not know its own address yet leaves it empty.
        found = sorted((first, last, (node[0].decode() or name, node[1])) for first, last, node, *_ in ranges)
        if sum(last - first + 1 for first, last, _ in found) != SLOTS:
            raise errors.ClusterDownError("not every slot has a server")
        return [(first, place) for first, _, place in found]


def is_passing(error: Exception, servers: Servers) -> bool:
    """Whether waiting may help."""
    if isinstance(error, FINAL) or _is_refused_certificate(error):
        return False
    if servers.form == "single" and isinstance(error, errors.MovedError | errors.ReadOnlyError):
        return False
    return isinstance(error, AGAIN) or str(error).startswith(AGAIN_WORDS)


def refusal(error: Exception, servers: Servers) -> StoreError:
    """Return the error to raise for one of redis-py's: what failed, and what to do; StoreRefused if no wait helps."""
    text = one_line(error)
    passes = is_passing(error, servers)
    advice = next((advice for kind, advice in ADVICE if isinstance(error, kind)), None)
    advice = advice or next((words for word, words in ADVICE_BY_WORD.items() if text.startswith(word)), None)
    if _is_refused_certificate(error):
        advice = "check tls, ca, cert and key of the address against the server's certificate"
    if advice is None and passes:
        waited = f"after {servers.wait.total_seconds():g} s of trying"
        advice = f"{waited}; see that the servers run and can be reached, then start again: nothing is lost"
    kind = StoreError if passes else StoreRefused
    return kind(f"store {servers}: {text}; {advice or 'this is unexpected, please report it'}")


def complete(reply: Any, servers: Servers) -> Any:
    """Return the reply of a script that reads totals; StoreIncomplete where it says that they are not all there."""
    if reply == b"lost":
        raise StoreIncomplete(
            f"store {servers}: there is none with this prefix, or it was emptied; "
            "see that the flow runs, which fills it"
        )
    if reply == b"rebuilding":
        raise StoreIncomplete(
            f"store {servers}: is being filled again; `tidegate store rebuild` shows how far it is"
        )
    return reply


@contextmanager
def _released(connection: Wire) -> Iterator[Wire]:
    try:
        yield connection
    finally:
        connection.disconnect()


def _connect(connection: Wire) -> None:
    try:
        connection.connect()
    except ssl.SSLError as error:
        raise errors.ConnectionError(str(error)) from error


def _asked(connection: Wire, *words: str) -> Any:
    _connect(connection)
    connection.send_command(*words, check_health=False)
    return connection.read_response(disable_decoding=True)


def _is_refused_certificate(error: BaseException | None) -> bool:
    while error:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
