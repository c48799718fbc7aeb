"""Redis restarts, hangs, fails over, refuses and forgets: what is written stays exact, and errors say what to do."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.connectors.contracts.store import HOUR, batch_of, holds, total_of, written
from tests.support import redis_server
from tests.support.places import ROOT
from tests.support.ports import free_ports
from tests.support.proxy import Proxy
from tests.support.redis_server import Server, waited_for
from tests.support.servers import lacking
from tidegate.connectors.redis.change_feed import RedisFeed
from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.control import RedisControl
from tidegate.connectors.redis.holds import RedisHolds
from tidegate.connectors.redis.key_layout import BUCKETS, Keys, bucket_of, slot_of
from tidegate.connectors.redis.reader import RedisReader
from tidegate.connectors.redis.servers import Servers
from tidegate.connectors.redis.writer import RedisWriter
from tidegate.operators.metering.republish import REPUBLISH_KIND
from tidegate.operators.model.ports import Adjustment, Hold, Note, Resend, Scope, StoreError, StoreIncomplete
from tidegate.operators.model.records import Counter, Total

CONNECTORS = ROOT / "docs" / "connectors.md"
SHORT = {"timeout": timedelta(milliseconds=200), "wait": timedelta(seconds=60)}
NO_WAIT = {"timeout": timedelta(milliseconds=200), "wait": timedelta(0)}


@pytest.fixture
def server() -> Iterator[Server]:
    with redis_server.single() as started:
        yield started


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Server]]:
    """One cluster for all that look at clusters, each under a prefix of its own."""
    with redis_server.cluster() as started:
        yield started


def at(*servers: Server, **given: Any) -> dict[str, Any]:
    return {"hosts": [("127.0.0.1", server.port) for server in servers], **given}


def through(proxy: Proxy, **given: Any) -> dict[str, Any]:
    host, _, port = proxy.address.rpartition(":")
    return {"hosts": [(host, int(port))], **SHORT, **given}


def writer_of(given: dict[str, Any], **more: Any) -> RedisWriter:
    return RedisWriter(**{"resumed": False, **given, **more})


def asked_for(given: dict[str, Any]) -> list[str]:
    """The ids of the resends in the control log."""
    with closing(RedisControl(**given)) as control:
        return [one.record.id for one in control.after("") if isinstance(one.record, Resend)]


def done(rebuild: str, shard: int, shards: int) -> Note:
    body = b'{"shard":%d,"shards":%d}' % (shard, shards)
    return Note(REPUBLISH_KIND, f"{rebuild}/{shard}", "", 5, body)


# Servers that stop


def test_a_killed_server_comes_back_with_all_that_it_acknowledged(server: Server) -> None:
    """Forced to disk at each write, it loses nothing; writing waits until it is back."""
    given = at(server, **SHORT)
    with closing(writer_of(given)) as writer, closing(RedisReader(**given)) as reader:
        writer.write(batch_of(1), [Counter(0, "events", 3)])
        server.kill()
        # In a thread of its own, as a server dies with the thread that started it.
        writing = threading.Thread(target=writer.write, args=(batch_of(2)[:150], [Counter(0, "events", 4)]))
        writing.start()
        server.start()
        writing.join()
        holds(reader, written([batch_of(1), batch_of(2)[:150]]))
        assert list(reader.counters()) == [Counter(0, "events", 4)]
    assert asked_for(given) == []


def test_a_server_that_hangs_is_waited_for(server: Server) -> None:
    """Longer than a call may take: it is called again, and what it did meanwhile is not done twice."""
    given = at(server, **SHORT)
    with closing(writer_of(given)) as writer, closing(RedisReader(**given)) as reader:
        writer.write(batch_of(1), [])
        server.pause()
        threading.Timer(0.7, server.go_on).start()
        writer.write(batch_of(2), [])
        holds(reader, written([batch_of(2)]))
        before = list(reader.totals())
        writer.write(batch_of(2), [])
        assert list(reader.totals()) == before


@pytest.mark.parametrize("how", ["slow", "bytes one by one", "cut"])
def test_a_bad_line_changes_nothing_that_is_written(server: Server, how: str) -> None:
    proxy = Proxy(f"127.0.0.1:{server.port}")
    given = through(proxy, timeout=timedelta(seconds=5))
    ended = threading.Event()

    def cut() -> None:
        while not ended.wait(0.02):
            proxy.cut()

    with closing(proxy), closing(writer_of(given)) as writer:
        if how == "slow":
            proxy.delay = 0.03
        elif how == "cut":
            threading.Thread(target=cut).start()
        else:
            proxy.piece = 1
        versions = 2 if how == "bytes one by one" else 10
        totals = [[total_of(f"c{n}", version=v, total=v) for n in range(20)] for v in range(1, versions + 1)]
        for version in totals:
            writer.write(version, [Counter(0, "events", len(version))])
        ended.set()
    with closing(RedisReader(**at(server))) as reader:
        holds(reader, written(totals))
    assert asked_for(at(server)) == []


def test_a_script_that_the_server_forgot_is_loaded_again(server: Server) -> None:
    """As after a failover or a restart, which keep keys and no scripts."""
    given = at(server, **NO_WAIT)
    with closing(writer_of(given)) as writer, closing(RedisReader(**given)) as reader:
        writer.write(batch_of(1), [])
        server.ask("SCRIPT", "FLUSH")
        writer.write(batch_of(2), [])
        server.ask("SCRIPT", "FLUSH")
        holds(reader, written([batch_of(2)]))


def test_a_server_that_stays_away_is_given_up_with_advice() -> None:
    """The flow then ends, and its supervisor starts it again: better than to seem alive for ever."""
    (port,) = free_ports(1)
    now, slept = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    servers = Servers(hosts=[("127.0.0.1", port)], wait=timedelta(seconds=30))
    redis = Redis(servers, sleep=sleep, monotonic=lambda: now[0])
    with pytest.raises(StoreError, match="after 30 s of trying; see that the servers run") as caught:
        redis.run([Command(0, ("PING",))])
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert 28 < sum(slept) <= 30 and max(slept) <= 1 and len(set(slept)) > len(slept) // 2


# What was lost


def test_a_failover_that_lost_writes_is_noticed_and_healed() -> None:
    """The old primary acknowledged what the new one never got: that is asked for again, and nobody is kept away."""
    with redis_server.watched() as redis:
        given = at(redis.sentinel, form="sentinel", service="metering", **SHORT)
        with (
            closing(writer_of(given)) as writer,
            closing(RedisReader(**given)) as reader,
            closing(RedisHolds(**given).feed()) as feed,
        ):
            writer.write(batch_of(1), [])
            replica, primary = redis.replica(), redis.primary()
            waited_for(lambda: primary.ask("DBSIZE") == replica.ask("DBSIZE"), "the replica")
            replica.pause()
            primary.ask("CLIENT", "KILL", "TYPE", "replica")
            writer.write(batch_of(2), [])
            primary.kill()
            replica.go_on()
            # Of this customer only, as the flow goes on with what changes next.
            writer.write([total_of("cus_1", version=3, total=3)], [])
            assert redis.primary() is replica
            # A near cache that still listened to the old one would be right about nothing.
            with pytest.raises(StoreError):
                feed.wait(0.01)
            (rebuild,) = asked_for(given)
            assert reader.read("cus_42")[0].total.version == 1
            writer.write(batch_of(2), [], [done(rebuild, 0, 1)])
            holds(reader, written([batch_of(2), [total_of("cus_1", version=3, total=3)]]))
            assert asked_for(given) == [rebuild]


def test_a_store_that_fell_back_while_nobody_wrote_is_noticed_and_healed(tmp_path: Path) -> None:
    """Flow and Redis lose power together: what Redis had acknowledged last is asked for, though it has all the rest."""
    numbers = tmp_path / "store" / "worker-0"
    with redis_server.single("appendonly yes", "appendfsync always") as server:
        given = at(server, **SHORT)
        with closing(writer_of(given, numbers=numbers)) as writer:
            writer.write(batch_of(1), [])
            kept = server.appended()
        with closing(writer_of(given, resumed=True, numbers=numbers)) as writer:
            assert asked_for(given) == []
            writer.write(batch_of(2), [])
        server.kill()
        server.forget(kept)
        server.start()
        # Of another number of workers, who share what is known.
        with closing(writer_of(given, resumed=True, numbers=numbers.with_name("worker-1"))) as writer:
            (rebuild,) = asked_for(given)
            with closing(RedisReader(**given)) as reader:
                assert reader.read("cus_42")[0].total.version == 1
                writer.write(batch_of(2), [], [done(rebuild, 0, 1)])
                holds(reader, written([batch_of(2)]))
        for worker in ("worker-0", "worker-1"):
            writer_of(given, resumed=True, numbers=numbers.with_name(worker)).close()
        assert asked_for(given) == [rebuild]


def test_an_emptied_store_is_closed_until_every_shard_has_written_all(server: Server) -> None:
    """Half of the totals would let everybody pass whose usage is in the other half."""
    given = at(server)
    with (
        closing(writer_of(given)) as one,
        closing(writer_of(given)) as other,
        closing(RedisReader(**given)) as reader,
    ):
        one.write(batch_of(1), [])
        other.write([total_of("x")], [])
        server.ask("FLUSHALL")
        with pytest.raises(StoreIncomplete, match="was emptied; see that the flow runs"):
            reader.read("cus_1")
        one.write(batch_of(1)[:150], [])
        with pytest.raises(StoreIncomplete, match="being filled again"):
            reader.read("cus_1")
        other.write([total_of("x")], [])
        (rebuild,) = asked_for(given)
        one.write(batch_of(1), [], [done(rebuild, 0, 2)])
        for look in (lambda: reader.read("cus_1"), lambda: reader.changes(0), lambda: list(reader.totals())):
            with pytest.raises(StoreIncomplete, match="being filled again"):
                look()
        other.write([total_of("x")], [], [done(rebuild, 1, 2)])
        holds(reader, written([batch_of(1), [total_of("x")]]))
        assert asked_for(given) == [rebuild]


def test_a_loss_during_a_rebuild_begins_another(server: Server) -> None:
    """The shard that was done already has to write again what was lost after it."""
    given = at(server)
    with closing(writer_of(given)) as writer, closing(RedisReader(**given)) as reader:
        writer.write(batch_of(1), [])
        server.ask("FLUSHALL")
        writer.write(batch_of(1), [])
        (first,) = asked_for(given)
        keys = Keys("tidegate")
        lost = [keys.state(bucket_of("cus_1")), keys.periods(bucket_of("cus_1"), "cus_1")]
        server.ask("DEL", *lost, keys.index(bucket_of("cus_1")))
        writer.write(batch_of(1), [])
        assert asked_for(given)[0] == first and len(asked_for(given)) == 2
        writer.write([], [], [done(first, 0, 1)])
        with pytest.raises(StoreIncomplete):
            reader.read("cus_1")
        writer.write([], [], [done(asked_for(given)[1], 0, 1)])
        assert len(list(reader.totals())) == 300


def test_a_store_of_before_that_has_nothing_was_emptied(server: Server) -> None:
    """The flow that goes on from a snapshot has totals; a new one has none to miss."""
    given = at(server)
    with closing(writer_of(given, resumed=True)), closing(RedisReader(**given)) as reader:
        with pytest.raises(StoreIncomplete, match="being filled again"):
            reader.read("a")
        assert len(asked_for(given)) == 1


def test_who_writes_a_note_begins_no_store(server: Server) -> None:
    """Else a health check would open an emptied store to gates before the flow has noticed."""
    given = at(server)
    with closing(RedisWriter(**given)) as writer, closing(RedisReader(**given)) as reader:
        writer.write([], [], [Note("alert", "stalled", "", 5, b"{}")])
        assert [note.id for note in reader.notes("alert")] == ["stalled"]
        with pytest.raises(StoreIncomplete):
            reader.read("a")


def test_a_follower_of_an_emptied_store_reads_all_anew(server: Server) -> None:
    """Its numbers go on from the clock, so a number of before is one of before."""
    given = at(server)
    with closing(writer_of(given)) as writer, closing(RedisReader(**given)) as reader:
        writer.write(batch_of(1), [])
        seq = reader.changes(0).seq
        server.ask("FLUSHALL")
        with closing(writer_of(given)) as anew:
            anew.write([total_of("b")], [])
            changes = reader.changes(seq)
            assert not changes.complete and changes.seq > seq
            assert reader.changes(changes.seq) == (changes.seq, frozenset(), True)


def test_an_emptied_store_gets_its_catalog_back(server: Server) -> None:
    """Under its number: whoever follows catalogs by their numbers would not look at a lower one."""
    given = at(server)
    with closing(writer_of(given)), closing(RedisControl(**given)) as control:
        control.apply("one", origin="file", by="f")
        second = control.apply("two", origin="api", by="k")
        server.ask("FLUSHALL")
        assert control.catalog_number() == 2
        with closing(RedisControl(**given)) as other:
            assert other.catalog() == second
        assert len(asked_for(given)) == 1


# What is refused


@pytest.mark.parametrize(
    ("options", "login", "says"),
    [
        (("requirepass secret",), {}, "check user and password in the address"),
        (("requirepass secret",), {"password": "wrong"}, "check user and password in the address"),
        (("user weak on nopass ~* +info",), {"user": "weak", "password": "x"}, "grant this user what docs"),
        (("user other on nopass ~else:* +@all",), {"user": "other", "password": "x"}, "grant this user what docs"),
        (("maxmemory 50mb", "maxmemory-policy allkeys-lru"), {}, "needs maxmemory-policy noeviction, got allkeys-lru"),
        (("replicaof 127.0.0.1 1", "replica-serve-stale-data yes"), {}, "this is a replica; name the primary"),
    ],
)  # fmt: skip
def test_what_a_server_refuses_is_told_with_what_to_do(
    options: tuple[str, ...], login: dict[str, str], says: str
) -> None:
    """At once, as no waiting helps, and without the password."""
    with redis_server.single(*options) as server:
        with pytest.raises(StoreError, match=says) as caught:
            writer_of(at(server, **login))
        assert "secret" not in str(caught.value) and "wrong" not in str(caught.value)


def test_a_full_server_is_told_with_what_to_do() -> None:
    with redis_server.single("appendonly no") as server, closing(writer_of(at(server))) as writer:
        server.ask("CONFIG", "SET", "maxmemory", "100kb")
        with pytest.raises(StoreError, match="raise the server's maxmemory"):
            writer.write(batch_of(1), [])


def test_another_schema_is_refused(server: Server) -> None:
    given = at(server)
    writer_of(given).close()
    server.ask("HSET", Keys("tidegate").state(3), "schema", 7)
    with pytest.raises(StoreError, match="needs schema 1, got 7; run the version of Tidegate that wrote it"):
        writer_of(given)


def test_a_cluster_behind_the_address_of_one_server_is_told(nodes: list[Server]) -> None:
    with pytest.raises(StoreError, match=r"begin the address with redis\+cluster:"):
        writer_of(at(nodes[0]))


def test_a_password_is_in_no_repr() -> None:
    servers = Servers(hosts=[("h", None)], user="u1", password="s1", sentinel_password="s2")
    assert "s1" not in f"{servers}{servers!r}" and "s2" not in f"{servers}{servers!r}"


# Users, prefixes, TLS


def test_the_user_of_the_documentation_may_do_what_is_needed_and_no_more() -> None:
    """An operator who copies the line gets a store that works, and one whose other keys are safe."""
    lines = " ".join(CONNECTORS.read_text().split())
    line = re.search(r"`ACL SETUSER tidegate on >secret ([^`]+)`", lines)
    assert line
    user = f"user tidegate on >secret {line[1]}"
    with redis_server.single(user) as server:
        given = at(server, user="tidegate", password="secret")
        with (
            closing(writer_of(given)) as writer,
            closing(RedisReader(**given)) as reader,
            closing(RedisControl(**given)) as control,
            closing(RedisHolds(**given)) as gate,
        ):
            control.append(Adjustment(id="1", customer="a", meter="m", at=1, quantity="1", reason="", by=""))
            assert len(control.after("")) == 1
            assert control.apply("text", origin="file", by="f") in control.catalogs()
            with closing(gate.feed()) as feed:
                hold = Hold("a", "", "1", {"m": 1}, 2**50)
                assert gate.reserve(hold, {}, Scope(("m",), 0), 5).outcome == "held"
                assert gate.commit("a", "", "1", None, 2**50, 5).state == "committed"
                assert gate.release("a", "", "1", 5).state == "committed"
                many = [total_of("a", start=n * HOUR, end=n * HOUR + HOUR) for n in range(500)]
                many += [total_of("a", window="period", start=n * 9999 * HOUR, end=n) for n in range(40)]
                writer.write(
                    [*many, *batch_of(1)], [Counter(0, "events", 1)], [Note("alert", "1", "a", 1, b"{}")]
                )
                assert feed.wait(0.05).customers
            assert len(reader.notes("alert")) == 1 and reader.changes(0).complete
            assert {stored.total.customer for stored in reader.totals()} > {"a"}
            server.ask("FLUSHALL")
            writer.write(batch_of(1), [])
            (rebuild,) = asked_for(given)
            writer.write(batch_of(1), [], [done(rebuild, 0, 1)])
            assert reader.read("cus_1")
        with pytest.raises(StoreError, match="grant this user"):
            writer_of(given, prefix="other")


def test_two_prefixes_are_two_stores(server: Server) -> None:
    one, other = at(server, prefix="one"), at(server, prefix="one:more")
    with closing(writer_of(one)) as writer, closing(writer_of(other)):
        writer.write(batch_of(1), [Counter(0, "events", 1)], [Note("alert", "1", "a", 1, b"{}")])
        with closing(RedisReader(**other)) as reader:
            assert not list(reader.totals()) and not reader.counters() and not reader.notes("alert")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that trusts itself."""
    if not shutil.which("openssl"):
        lacking("no openssl to make a certificate with")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=tidegate", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return tmp_path


def test_tls_with_certificates_of_both_sides(certificates: Path) -> None:
    cert, key = certificates / "cert.pem", certificates / "key.pem"
    (port,) = free_ports(1)
    options = [f"tls-port {port}", f"tls-cert-file {cert}", f"tls-key-file {key}", f"tls-ca-cert-file {cert}"]
    server = Server(certificates / "server", port, *options)
    try:
        server.start()
    except AssertionError as error:
        if "Failed finding TLS support" in str(error):
            lacking("this build of the server has no TLS")
        raise
    try:
        files = {"ca": str(cert), "cert": str(cert), "key": str(key)}
        given = at(server, tls=True, **files)
        with closing(writer_of(given)) as writer, closing(RedisReader(**given)) as reader:
            writer.write(batch_of(1), [])
            holds(reader, written([batch_of(1)]))
            with closing(RedisFeed(Servers(**given), Keys("tidegate"))) as feed:
                writer.write(batch_of(2), [])
                assert feed.wait(0.05).customers
        # A certificate that nobody vouches for is refused at once.
        with pytest.raises(StoreError, match="check tls, ca, cert and key of the address"):
            writer_of(given, ca=None)
        with pytest.raises(StoreError):
            writer_of(at(server, tls=False, **NO_WAIT))
    finally:
        server.kill()


# Clusters


def test_all_of_a_customer_is_in_one_slot_and_customers_are_spread(nodes: list[Server]) -> None:
    keys, names = Keys("p"), ["", "a", "{", "}", "{}", "a}{b", "é", "\x00", "x" * 5000]
    for name in names:
        bucket = bucket_of(name)
        mine = [keys.periods(bucket, name), keys.charts(bucket, name), *keys.holds(bucket, name)]
        mine += [keys.state(bucket), keys.index(bucket), keys.waiting(bucket)]
        assert {nodes[0].ask("CLUSTER", "KEYSLOT", key) for key in mine} == {slot_of(bucket)}
    slots = [slot_of(bucket) for bucket in range(BUCKETS)]
    assert [slot * BUCKETS // 16_384 for slot in slots] == list(range(BUCKETS))


def test_a_slot_that_moves_to_another_node_is_followed(nodes: list[Server]) -> None:
    """A cluster grows while the flow runs; what is written meanwhile waits for the slot to have arrived."""
    given = at(*nodes, form="cluster", prefix="moved", **SHORT)
    slot = slot_of(bucket_of("cus_1"))
    source, target = _owner(nodes, slot), _another(nodes, slot)
    with (
        closing(writer_of(given)) as writer,
        closing(RedisReader(**given)) as reader,
        closing(RedisHolds(**given).feed()) as feed,
    ):
        writer.write(batch_of(1), [])
        assert feed.wait(0.05).customers
        move = threading.Thread(target=_move, args=(nodes, slot, source, target))
        move.start()
        for version in range(2, 12):
            writer.write(batch_of(version), [])
        move.join()
        writer.write(batch_of(12), [])
        holds(reader, written([batch_of(12)]))
        with pytest.raises(StoreError, match="no longer what it was"):
            feed.wait(0.01)
    assert asked_for(given) == []


def test_a_node_that_comes_back_empty_is_filled_again(nodes: list[Server]) -> None:
    """Its part alone: customers of other nodes are read as ever."""
    given = at(*nodes, form="cluster", prefix="lost", **SHORT)
    keys = Keys("lost")
    lost = _another(nodes, keys.control_slot)
    owners = {f"cus_{n}": _owner(nodes, slot_of(bucket_of(f"cus_{n}"))) for n in range(100)}
    gone = next(name for name, owner in owners.items() if owner is lost)
    kept = next(name for name, owner in owners.items() if owner is not lost)
    with closing(writer_of(given)) as writer, closing(RedisReader(**given)) as reader:
        writer.write(batch_of(1), [])
        lost.ask("FLUSHALL")
        writer.write(batch_of(2), [])
        assert len(reader.read(kept)) == 3
        with pytest.raises(StoreIncomplete):
            reader.read(gone)
        (rebuild,) = asked_for(given)
        writer.write([], [], [done(rebuild, 0, 1)])
        holds(reader, written([batch_of(2)]))


def _owner(nodes: list[Server], slot: int) -> Server:
    for first, last, (_, port, *_), *_ in nodes[0].ask("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return next(node for node in nodes if node.port == port)
    raise AssertionError(slot)


def _another(nodes: list[Server], slot: int) -> Server:
    owner = _owner(nodes, slot)
    return next(node for node in nodes if node is not owner)


def _move(nodes: list[Server], slot: int, source: Server, target: Server) -> None:
    ids = {node.port: node.ask("CLUSTER", "MYID") for node in (source, target)}
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
    while names := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
    for node in (target, source, *(other for other in nodes if other not in (source, target))):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])


# What is kept, and for how long


DAY = 24 * HOUR
FAR = 4_080_000_000_000_000 - 4_080_000_000_000_000 % DAY
RECENT = 1_700_000_000_000_000 - 1_700_000_000_000_000 % DAY


def row(window: str, start: int, length: int) -> Total:
    return total_of("a", window=window, start=start, end=start + length)


@pytest.mark.parametrize("future", [False, True])
def test_old_hours_and_days_go_as_new_ones_come(server: Server, future: bool) -> None:
    """The customer's own newest decides what is old, so that a replay of last year keeps what it writes.

    One event that says it is of the year 2099, as the event clock lets it, drops none of them.
    """
    given = at(server)
    keep = {"hours": timedelta(days=2), "days": timedelta(days=40), "periods": timedelta(days=60)}
    with closing(writer_of(given, **keep)) as writer, closing(RedisReader(**given)) as reader:
        if future:
            writer.write([row("hour", FAR, HOUR), row("day", FAR, DAY), row("period", FAR, DAY)], [])
        for n in range(24 * 10):
            writer.write([row("hour", RECENT + n * HOUR, HOUR)], [])
        for n in range(100):
            writer.write([row("day", RECENT + n * DAY, DAY), row("period", RECENT + n * DAY, DAY)], [])
        kept: dict[str, list[int]] = {"hour": [], "day": [], "period": []}
        for total, _ in reader.read("a"):
            if total.start != FAR:
                kept[total.window].append(total.start)
    counts = {window: len(starts) for window, starts in kept.items()}
    assert (
        49 <= counts["hour"] <= 49 + 16
        and 41 <= counts["day"] <= 41 + 16
        and 61 <= counts["period"] <= 62 + 16
    )
    assert max(kept["hour"]) == RECENT + 239 * HOUR and max(kept["period"]) == RECENT + 99 * DAY


def test_a_period_stays_as_long_as_it_lasts(server: Server) -> None:
    """A total that vanished from an open period would open the gate. Charts end with the last write."""
    # The year 2096, as a server drops at once what has ended.
    now = 4_000_000_000_000_000
    given = at(server)
    keys, bucket = Keys("tidegate"), bucket_of("a")
    ends = now + 700 * DAY
    with closing(writer_of(given, clock=lambda: now, periods=timedelta(days=100))) as writer:
        writer.write([total_of("a", window="period", start=now, end=now + DAY), row("hour", now, HOUR)], [])
        assert _ends(server, keys.periods(bucket, "a")) == (now + 101 * DAY) // 1000
        writer.write([total_of("a", window="period", start=now, end=ends, version=2)], [])
        assert _ends(server, keys.periods(bucket, "a")) == (ends + 100 * DAY) // 1000
        writer.write([total_of("a", window="period", start=now - DAY, end=now)], [])
        assert _ends(server, keys.periods(bucket, "a")) == (ends + 100 * DAY) // 1000
        assert _ends(server, keys.charts(bucket, "a")) == (now + 92 * DAY) // 1000


def _ends(server: Server, key: str) -> int:
    return int(server.ask("PEXPIRETIME", key))
