"""Where dead letters and accepted events go."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import ByteSize, Field, SecretStr, model_validator

from tidegate.operators.billing.rate_limit import TIERS, Rate
from tidegate.operators.model.dead_letters import DeadLetterPlace
from tidegate.settings.addresses.address import BY_SCHEME, Address, Host, load
from tidegate.settings.addresses.kafka import KafkaAddress
from tidegate.settings.durations import Duration, between, read_duration
from tidegate.settings.problems import SettingsError

MIB: Final = 1 << 20
GIB: Final = 1 << 30
# What of an address goes to the sink by the same name.
TERMS: Final = (
    "late", "unmapped", "linger", "concurrency", "alert_age", "bytes_max", "drain", "ledger", "ledger_bytes_max"
)  # fmt: skip


class FilePlace(Address):
    """What is written to files of its own: each path is another place."""

    needs: ClassVar[frozenset[str]] = frozenset({"lineage", "sync"})
    path: str

    @property
    def place(self) -> str:
        return f"file:{Path(self.path)}"

    def beside(self, name: str) -> Self:
        """Return the address of another file beside this one: a file is written by one flow alone."""
        path = Path(self.path)
        return self.model_copy(update={"path": str(path.with_name(f"{path.stem}-{name}{path.suffix}"))})

    def written(self) -> tuple[Path, ...]:
        path = Path(self.path)
        return path, path.with_name(f"{path.name}.start")


class DeadLetterFile(FilePlace):
    """`file:data/dead-letters.ndjson`: one dead letter a line, appended."""

    connector: ClassVar[str] = "tidegate.connectors.files.ndjson:FileSink"
    scheme: Literal["file"] = "file"
    path: str = Field(min_length=1, description="The file that dead letters are appended to.")

    def open_letters(self, data_dir: Path) -> DeadLetterPlace:
        place: DeadLetterPlace = load("tidegate.connectors.files.dead_letters:FileDeadLetters")(
            Path(self.path)
        )
        return place


class DeadLetterStdout(Address):
    """`stdout:`: one dead letter a line on standard output."""

    connector: ClassVar[str] = "tidegate.connectors.files.stdout:StdoutSink"
    scheme: Literal["stdout"] = "stdout"


class BillingFile(FilePlace):
    """`file:data/billing/`: a folder of accepted events, as they would be sent to the provider."""

    connector: ClassVar[str] = "tidegate.connectors.files.ndjson:DirSink"
    needs: ClassVar[frozenset[str]] = frozenset({"lineage", "sync", "parts"})
    scheme: Literal["file"] = "file"
    path: str = Field(min_length=1, description="The folder; it is made if need be.")

    def arguments(self) -> dict[str, Any]:
        return {"directory": self.path}


class ProviderAddress(Address):
    """A billing provider: takes accepted events in packs, and keeps what waits for it in an outbox."""

    rollup: Literal["none", "1m", "5m"] = Field(
        "none", description="One event per customer, meter and window of this length instead of each event."
    )
    outbox: str | None = Field(
        None, description="The outbox's file; `outbox.db` in the data directory if not given."
    )

    def outbox_path(self, data_dir: Path) -> Path:
        """Return the outbox's file."""
        return Path(self.outbox) if self.outbox else data_dir / "outbox.db"

    def open_letters(self, data_dir: Path) -> DeadLetterPlace:
        place: DeadLetterPlace = load("tidegate.connectors.outbox.dead_letters:OutboxDeadLetters")(
            self.outbox_path(data_dir), unfolded=self.rollup != "none"
        )
        return place


class Dodo(ProviderAddress):
    """`dodo:test`, `dodo:live`, or `dodo://127.0.0.1:8080?tls=false` for a simulator; the key is a setting."""

    connector: ClassVar[str] = "tidegate.connectors.dodo.sink:DodoSink"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"api_key", "data_dir", "parts", "catalog", "sync", "open_store"}
    )
    scheme: Literal["dodo"] = "dodo"
    path: Literal["test", "live"] | None = Field(None, description="The environment: test or live.")
    hosts: tuple[Host, ...] = Field((), max_length=1)
    tls: bool = Field(True, description="Speak HTTPS; without it only to a simulator.")
    tier: int = Field(
        0, ge=0, le=2, description="The account's rate tier: 240, 1000 or 5000 requests a minute."
    )
    share: float = Field(1, gt=0, le=1, description="The part of the tier's limit that this machine may use.")
    reads: int = Field(
        60, ge=0, le=3000, description="Requests a minute of that share left to reconciliation."
    )
    late: Literal["restamp", "park"] = Field(
        "restamp", description="Usage over 55 minutes old: billed at the time it arrives, or held back."
    )
    unmapped: Literal["park", "skip"] = Field(
        "park",
        description="Usage of customers without a billing_id: kept until they have one, or not billed.",
    )
    linger: Annotated[Duration, between("0", "1m")] = Field(
        timedelta(seconds=1), description="How long a batch may wait to fill up."
    )
    concurrency: int = Field(4, ge=1, le=32, description="Requests under way at once.")
    alert_age: Annotated[Duration, between("1m", "50m")] = Field(
        timedelta(minutes=20), description="Age of waiting usage from which an alert is raised."
    )
    bytes_max: ByteSize = Field(
        ByteSize(16 * GIB), ge=MIB, description="How large the outbox may grow before the flow stops."
    )
    ledger: Annotated[Duration, between("0", "400d")] = Field(
        timedelta(days=35), description="How long sent usage is remembered whole, to explain and mend drift."
    )
    ledger_bytes_max: ByteSize = Field(
        ByteSize(16 * GIB), ge=MIB, description="How large that memory may grow; then the oldest goes first."
    )
    drain: Annotated[Duration, between("0", "1h")] = Field(
        timedelta(seconds=5), description="How long the end of the input waits for usage to be sent."
    )

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        if bool(self.path) == bool(self.hosts):
            raise ValueError(
                "needs dodo:test, dodo:live or dodo://HOST:PORT, as live must never be a default"
            )
        if self.path and not self.tls:
            raise ValueError("needs tls, which only dodo://HOST:PORT may go without")
        return self

    @property
    def base_url(self) -> str:
        """Where the API answers."""
        if self.path:
            return f"https://{self.path}.dodopayments.com"
        return f"{'https' if self.tls else 'http'}://{self.hosts[0]}"

    def written(self) -> tuple[Path, ...]:
        if not self.outbox:
            return ()  # It lies in the data directory.
        path = Path(self.outbox)
        names = (f"{path.name}{end}" for end in ("", "-wal", "-shm", ".sender"))
        return *(path.with_name(name) for name in names), path.with_name(f"{path.stem}-ledger.db")

    def rates(self) -> tuple[Rate, Rate]:
        """Return the rate for sending and the rate for reading, within the account's limit."""
        whole = TIERS[self.tier].scale(self.share)
        part = min(self.reads / whole.sustained, 0.9)
        return whole.scale(1 - part), whole.scale(part)

    def open(self, *, api_key: SecretStr | None = None, data_dir: Path = Path("data"), **given: Any) -> Any:
        """Build the sink; `given` are the number of parts, where the catalog is from, and the flow's own choices."""
        terms = {name: getattr(self, name) for name in TERMS}
        return load(self.connector)(
            self.base_url,
            _plain(api_key),
            self.rates()[0],
            self.outbox_path(data_dir),
            rollup=None if self.rollup == "none" else read_duration(self.rollup),
            **terms,
            **given,
        )

    def open_client(self, api_key: SecretStr | None, **given: Any) -> Any:
        """Return a client of the API for reading, at the rate that is left to it."""
        return load("tidegate.connectors.dodo.client:DodoClient")(
            self.base_url, _plain(api_key), self.rates()[1], **given
        )


def _plain(api_key: SecretStr | None) -> str:
    if api_key is None:
        raise SettingsError(["TIDEGATE_DODO_API_KEY: is missing: dodo: needs the API key of the account"])
    key = api_key.get_secret_value()
    if not key.isascii() or not key.isprintable() or " " in key or not 0 < len(key) <= 512:
        raise SettingsError(["TIDEGATE_DODO_API_KEY: needs 1 to 512 visible ASCII characters"])
    return key


class KafkaSinkAddress(KafkaAddress):
    """`replays` says what becomes of records that a restart comes to again."""

    needs: ClassVar[frozenset[str]] = frozenset({"starts"})
    replays: Literal["skip", "repeat"] = Field(
        "skip",
        description="After a restart leave out what the topic has already; `repeat` needs no right to read it.",
    )

    @property
    def place(self) -> str:
        return f"kafka:{self.path}"


class DeadLetterKafka(KafkaSinkAddress):
    """`kafka://broker:9092/dead-letters`: one dead letter a message, as it came, with its reason as headers."""

    connector: ClassVar[str] = "tidegate.connectors.kafka.sinks:DeadLetterSink"


DeadLetters = Annotated[DeadLetterFile | DeadLetterStdout | DeadLetterKafka, BY_SCHEME]
Billing = Annotated[BillingFile | Dodo, BY_SCHEME]
