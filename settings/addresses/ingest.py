"""Where the HTTP service puts the events that it takes in, for the flow to read."""

from typing import Annotated, ClassVar, Literal

from pydantic import ByteSize, Field

from tidegate.settings.addresses.address import BY_SCHEME, Address
from tidegate.settings.addresses.kafka import KafkaAddress


class IngestLog(Address):
    """`log:data/ingest/`: a folder of files that only grow, which the source of the same address follows."""

    connector: ClassVar[str] = "tidegate.connectors.log.writer:LogWriter"
    scheme: Literal["log"] = "log"
    path: str = Field(min_length=1, description="The folder; it is made if need be.")
    lanes: int = Field(
        1, ge=1, le=64, description="How many services may write at a time, as the source says."
    )
    segment_bytes: ByteSize = Field(
        ByteSize(64 << 20), ge=4096, le=1 << 32, description="A file that is as large is followed by another."
    )
    sync: bool = Field(True, description="Force events to disk (fsync) before they are answered for.")


class IngestKafka(KafkaAddress):
    """`kafka://broker:9092/usage-events`: a topic, a customer's events in one partition, which the source reads."""

    connector: ClassVar[str] = "tidegate.connectors.kafka.ingest:KafkaIngest"


Ingest = Annotated[IngestLog | IngestKafka, BY_SCHEME]
