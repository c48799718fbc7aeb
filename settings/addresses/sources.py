"""Where events come from."""

from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from tidegate.settings.addresses.address import BY_SCHEME, Address
from tidegate.settings.addresses.kafka import KafkaAddress
from tidegate.settings.durations import Duration, between


def _begun(value: object) -> object:
    """`earliest`, `latest` or an aware time."""
    if value in ("earliest", "latest") or isinstance(value, datetime):
        return value
    with suppress(ValueError):
        at = datetime.fromisoformat(str(value))
        if at.tzinfo:
            return at
    raise ValueError("needs earliest, latest or a time with its offset such as 2026-11-01T00:00:00Z")


class SourceAddress(Address):
    """`live` says that the transport knows when it took an event, which then decides what is late.

    `is_checked` says that the source has a method `check`, which raises where it cannot be read, before anything is
    made.
    """

    live: ClassVar[bool]
    is_checked: ClassVar[bool] = False

    @property
    def endless(self) -> bool:
        """Whether the source waits for more, so that the flow runs until it is stopped."""
        return True


class File(SourceAddress):
    """`file:events.ndjson`, `file:data/*.ndjson` or `file:-` (standard input): one payload a line.

    A `?` in a glob is written `%3F`. Also with `follow` this is no live source: what a file holds may be
    of any age, and nobody noted when it came.
    """

    connector: ClassVar[str] = "tidegate.connectors.files.ndjson:FileSource"
    needs: ClassVar[frozenset[str]] = frozenset({"poll_bytes", "own"})
    live: ClassVar[bool] = False
    is_checked: ClassVar[bool] = True
    scheme: Literal["file"] = "file"
    path: str = Field(min_length=1, description="A file, a glob of files, or - for standard input.")
    follow: bool = Field(False, description="Wait for more at the end of the files, as tail -F does.")

    @property
    def endless(self) -> bool:
        return self.follow


class Log(SourceAddress):
    """`log:data/ingest/`: what the HTTP service has taken in, in the order in which it did, and when."""

    connector: ClassVar[str] = "tidegate.connectors.log.source:LogSource"
    needs: ClassVar[frozenset[str]] = frozenset({"poll_bytes"})
    live: ClassVar[bool] = True
    scheme: Literal["log"] = "log"
    path: str = Field(min_length=1, description="The folder of the log.")
    lanes: int = Field(1, ge=1, le=64, description="How many services write at a time, a lane each.")
    follow: bool = Field(True, description="Wait for more; else end where the log ends.")

    @property
    def place(self) -> str:
        return f"log:{Path(self.path)}"

    @property
    def endless(self) -> bool:
        return self.follow


class Demo(SourceAddress):
    """`demo:?customers=40&rate=200`: usage of an AI product, made up, the same for the same seed."""

    connector: ClassVar[str] = "tidegate.connectors.demo.source:DemoSource"
    live: ClassVar[bool] = True
    scheme: Literal["demo"] = "demo"
    seed: int = Field(1, ge=0, le=2**32 - 1, description="Another seed makes up other usage.")
    customers: int = Field(40, ge=1, le=10_000, description="How many customers there are.")
    rate: float = Field(200, gt=0, le=1_000_000, allow_inf_nan=False, description="Events per second.")
    speed: float = Field(
        1, gt=0, le=100_000, allow_inf_nan=False, description="Seconds of event time in a second of ours."
    )
    count: int | None = Field(None, ge=1, description="Stop after so many events.")

    @property
    def endless(self) -> bool:
        return self.count is None


class Kafka(KafkaAddress, SourceAddress):
    """`kafka://broker:9092/usage-events`: the messages of a topic, as they come."""

    connector: ClassVar[str] = "tidegate.connectors.kafka.source:KafkaSource"
    needs: ClassVar[frozenset[str]] = frozenset({"poll_bytes", "starts"})
    live: ClassVar[bool] = True
    group: str = Field(
        "tidegate", min_length=1, max_length=249, description="The consumer group that lag tools look at."
    )
    start: Annotated[Literal["earliest", "latest"] | datetime, BeforeValidator(_begun)] = Field(
        "earliest", description="Where a first start reads from: `earliest`, `latest`, or a time in RFC 3339."
    )
    lost: Literal["raise", "skip"] = Field(
        "raise", description="What to do where messages were deleted before they were read."
    )
    follow: bool = Field(True, description="Wait for more; else end where the topic ended at the start.")
    outage: Annotated[Duration, between("1s", "1d")] = Field(
        timedelta(minutes=5), description="How long to wait for brokers that are all away."
    )

    @property
    def endless(self) -> bool:
        return self.follow


Source = Annotated[File | Demo | Log | Kafka, BY_SCHEME]
