"""What the flow's own state takes, counted in its arrays: without the interpreter, the input and what is free."""

from datetime import timedelta

from benchmarks.generate import Dataset, catalog
from tidegate.operators.events.decode import Decoder
from tidegate.operators.metering.shard import Shard
from tidegate.operators.model.ports import Payloads

SHARDS = 16
POLL_BYTES = 16 << 20
LATENESS = timedelta(hours=24)


def bytes_per_identity(dataset: Dataset) -> float:
    """Memory of the remembered identities, by the number of them, after the whole data set in this process."""
    decoder = Decoder(catalog(), shards=SHARDS, clock="event")
    shards = [Shard(number, catalog(), LATENESS, "event") for number in range(SHARDS)]
    with dataset.whole.open("rb") as file:
        while block := file.read(POLL_BYTES):
            block += file.readline()
            for number, chunk in decoder.decode(Payloads(block, 0, None, "")):
                shards[number].apply(chunk)
    return sum(shard.memory.nbytes for shard in shards) / sum(len(shard.memory) for shard in shards)
