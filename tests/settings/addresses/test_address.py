import subprocess
import sys
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr, TypeAdapter, ValidationError

from tests.support.places import ROOT
from tidegate.settings.addresses.address import BY_SCHEME, Address, Dsn, Host, load
from tidegate.settings.addresses.alerts import Alert, AlertFile, AlertStdout
from tidegate.settings.addresses.sinks import (
    Billing,
    BillingFile,
    DeadLetterFile,
    DeadLetters,
    DeadLetterStdout,
)
from tidegate.settings.addresses.sources import Demo, File, Source
from tidegate.settings.addresses.stores import Sqlite, Store, StoreAddress
from tidegate.settings.durations import Duration
from tidegate.settings.problems import SettingsError

SECRET = "hunter2"


class Opened:
    """Stands for a connector: keeps what it was built from."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


class Queue(Dsn):
    """A system that nobody has, with everything an address may have."""

    connector: ClassVar[str] = "tests.settings.addresses.test_address:Opened"
    scheme: Literal["queue"] = "queue"
    path: str = ""
    token: SecretStr | None = None
    wait: Duration = timedelta(seconds=1)
    size: int = Field(10, ge=1)
    eager: bool = False


QUEUE: TypeAdapter[Queue] = TypeAdapter(Annotated[Queue, BY_SCHEME])


def parse(role: Any, text: object) -> Any:
    return TypeAdapter(role).validate_python(text)


def errors(role: Any, text: object) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        parse(role, text)
    found = caught.value.errors()
    return [(".".join(map(str, line["loc"])), line["msg"].removeprefix("Value error, ")) for line in found]


@pytest.mark.parametrize(
    ("role", "text", "address"),
    [
        (Source, "file:events.ndjson", File(path="events.ndjson")),
        (Source, "file:-", File(path="-")),
        (Source, "file:data/*.ndjson?follow=true", File(path="data/*.ndjson", follow=True)),
        (Source, "file:a%20b/%3F.ndjson", File(path="a b/?.ndjson")),
        (Source, "file:/abs/x", File(path="/abs/x")),
        (Source, "file:///abs/x", File(path="/abs/x")),
        (Source, "file:////abs/x", File(path="//abs/x")),
        (Source, "FILE:x#1+2.ndjson", File(path="x#1+2.ndjson")),
        (Source, " file:x ", File(path="x")),
        (Source, "file:x?", File(path="x")),
        (Source, "demo:", Demo()),
        (
            Source,
            "demo:?seed=7&customers=10000&rate=0.5&speed=3600&count=9",
            Demo(seed=7, customers=10_000, rate=0.5, speed=3600, count=9),
        ),
        (Store, "sqlite:data/t.db", Sqlite(path="data/t.db")),
        (Alert, "file:a.ndjson", AlertFile(path="a.ndjson")),
        (Alert, "stdout:", AlertStdout()),
        (DeadLetters, "file:d.ndjson", DeadLetterFile(path="d.ndjson")),
        (Billing, "file:data/billing/", BillingFile(path="data/billing/")),
    ],
)
def test_reads(role: Any, text: str, address: Address) -> None:
    assert parse(role, text) == address
    assert parse(role, str(address)) == address


@pytest.mark.parametrize(
    ("role", "text", "place", "message"),
    [
        (Source, "", "", "needs an address that begins with file: or demo:"),
        (Source, 7, "", "needs an address that begins with file: or demo:"),
        (Source, "events.ndjson", "", "needs an address that begins with file: or demo:"),
        (
            Source,
            "flie:x",
            "",
            "needs an address that begins with file: or demo: or log: or kafka:; did you mean file?",
        ),
        (Source, "nats://h/t", "", "needs an address that begins with file: or demo:"),
        (Store, "file:x", "", "needs an address that begins with sqlite:"),
        (Source, "file:", "file.path", "is missing: A file, a glob of files, or - for standard input."),
        (Source, "file:?follow=true", "file.path", "is missing: A file"),
        (Source, "file:x?folow=true", "file.folow", "is unknown; did you mean follow?; choices: follow"),
        (Source, "file:x?follow=maybe", "file.follow", "needs true or false"),
        (Source, "file:x?follow", "", "needs every option written as name=value, parted by &"),
        (Source, "file:x?follow=1&follow=0", "", "needs each option once"),
        (Source, "file:x?path=y", "", "needs each option once, and none with the name of a part"),
        (Source, "file:?path=y", "", "needs each option once, and none with the name of a part"),
        (Source, "file:x?scheme=demo", "", "needs each option once, and none with the name of a part"),
        (Source, "file://host/x", "", "file: takes no host: nothing stands behind //"),
        (Source, "file:a%00b", "", "needs UTF-8 text without control characters behind its percent signs"),
        (Source, "file:%ff", "", "needs UTF-8 text without control characters behind its percent signs"),
        (Source, "demo:x", "", "demo: takes no path"),
        (Source, "demo:?customers=0", "demo.customers", "needs 1 or more"),
        (Source, "demo:?customers=10001", "demo.customers", "needs 10000 or less"),
        (Source, "demo:?rate=0", "demo.rate", "needs more than 0"),
        (Source, "demo:?rate=inf", "demo.rate", "needs a finite number"),
        (Source, "demo:?seed=1.5", "demo.seed", "needs a whole number"),
        (Source, "demo:?count=0", "demo.count", "needs 1 or more"),
        (Store, "sqlite::memory:", "sqlite.path", "needs a file, as what is in memory no other process"),
        (Alert, "stdout:x", "", "stdout: takes no path"),
        (Annotated[Queue, BY_SCHEME], "queue:x", "queue.hosts", "is missing"),
        (Annotated[Queue, BY_SCHEME], "queue:///x", "queue.hosts", "is missing"),
        (Annotated[Queue, BY_SCHEME], "queue://h:0/x", "", "needs HOST or HOST:PORT after the //"),
        (Annotated[Queue, BY_SCHEME], "queue://h:65536/x", "", "needs HOST or HOST:PORT after the //"),
        (Annotated[Queue, BY_SCHEME], "queue://h?wait=10", "queue.wait", "needs a duration with its unit"),
    ],
)
def test_says_what_is_wrong(role: Any, text: object, place: str, message: str) -> None:
    (found,) = errors(role, text)
    assert found[0] == place
    assert found[1].startswith(message)


def test_reads_hosts_login_and_options() -> None:
    found = QUEUE.validate_python(
        f"queue://me:{SECRET}%2F%40@a.example:9092,[::1]:9093,b/topic?token={SECRET}%26+/=&wait=250ms&eager=yes"
    )
    assert found.hosts == (Host("a.example", 9092), Host("[::1]", 9093), Host("b", None))
    assert (found.path, found.wait, found.eager, found.size) == (
        "topic",
        timedelta(milliseconds=250),
        True,
        10,
    )
    assert found.user and found.user.get_secret_value() == "me"
    assert found.password and found.password.get_secret_value() == SECRET + "/@"
    assert found.token and found.token.get_secret_value() == SECRET + "&+/="


def test_no_secret_is_shown() -> None:
    """Addresses are logged, and settings are pasted into tickets."""
    found = QUEUE.validate_python(f"queue://{SECRET}:{SECRET}@h:1/topic?token={SECRET}&size=3")
    assert str(found) == "queue://***@h:1/topic?token=***&size=3"
    for shown in (str(found), repr(found), f"{found}", str(found.model_dump()), found.model_dump_json()):
        assert SECRET not in shown


@pytest.mark.parametrize(
    "text",
    [
        f"queu://me:{SECRET}@h",
        f"{SECRET}",
        f"{SECRET}:x",
        f"queue://me:{SECRET}@h:port/x",
        f"queue://me:1/{SECRET}@h/x",
        f"queue://me:{SECRET}/x@h/x",
        f"queue://me:1/{SECRET}@h",
        f"queue://me:a@b/{SECRET}@h",
        f"queue://me:{SECRET}?x@h/x",
        f"queue://h?size={SECRET}",
        f"queue://h?wait={SECRET}&eager={SECRET}",
        f"queue://h?tokn={SECRET}",
        f"queue://h?token={SECRET}&token={SECRET}",
        f"queue://h?{SECRET}",
        f"queue://h?token={SECRET}%ff",
        f"queue:me:{SECRET}@h",
    ],
)
def test_no_error_shows_what_came(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        QUEUE.validate_python(text)
    lines = caught.value.errors()
    assert SECRET not in "".join(line["msg"] + str(line["loc"]) for line in lines)
    assert SECRET not in str(caught.value) + repr(lines)


def test_opens_by_name_with_plain_arguments_and_what_else_is_given() -> None:
    opened = QUEUE.validate_python(f"queue://:{SECRET}@h/t?token={SECRET}").open(poll_bytes=5)
    assert isinstance(opened, Opened)
    assert opened.arguments == {
        "hosts": (Host("h", None),),
        "user": None,
        "password": SECRET,
        "path": "t",
        "token": SECRET,
        "wait": timedelta(seconds=1),
        "size": 10,
        "eager": False,
        "poll_bytes": 5,
    }


def test_file_connectors_are_built_from_plain_arguments() -> None:
    assert File(path="x", follow=True).arguments() == {"path": "x", "follow": True}
    assert BillingFile(path="x/").arguments() == {"directory": "x/"}
    assert AlertStdout().arguments() == {}
    assert Sqlite(path="x.db").arguments() == {"path": "x.db"}


@pytest.mark.parametrize(
    "address",
    [
        File(path="x"),
        Demo(),
        Sqlite(path="x.db"),
        AlertFile(path="x"),
        AlertStdout(),
        DeadLetterFile(path="x"),
        DeadLetterStdout(),
        BillingFile(path="x"),
    ],
    ids=lambda address: type(address).__name__,
)
def test_every_connector_is_there_and_takes_what_its_address_has(address: Address) -> None:
    """A renamed class or argument is found here and not on somebody's first start."""
    signature(load(address.connector)).bind_partial(**address.arguments())
    if isinstance(address, StoreAddress):
        signature(load(address.reader)).bind_partial(**address.arguments())


@pytest.mark.parametrize("spec", ["tidegate.connectors.nowhere:Source", "json:Nothing", "json"])
def test_what_cannot_be_imported_is_a_settings_error(spec: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{spec}: cannot be loaded \(.+\); install what"):
        load(spec)


def test_importing_settings_imports_no_connector_and_reads_nothing(folder: Path) -> None:
    """A user of one system needs no library of another, and `import` never fails on a setting."""
    (folder / "tidegate.toml").write_text("= broken")
    (folder / ".env").write_text("TIDEGATE_NONSENSE=1")
    code = (
        "import sys, settings.settings, settings.catalog;"
        "sys.exit(any(m.startswith('connectors') for m in sys.modules))"
    )
    root = str(ROOT)
    env = {"PYTHONPATH": root, "TIDEGATE_NONSENSE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


PATHS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1).filter(
    lambda path: path != ":memory:"
)


@given(PATHS, st.booleans())
def test_what_is_written_reads_back(path: str, follow: bool) -> None:
    address = File(path=path, follow=follow)
    assert parse(Source, str(address)) == address


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 10_000),
    st.floats(0.001, 1_000_000),
    st.none() | st.integers(1, 10**12),
)
def test_options_read_back(seed: int, customers: int, rate: float, count: int | None) -> None:
    address = Demo(seed=seed, customers=customers, rate=rate, count=count)
    assert parse(Source, str(address)) == address
