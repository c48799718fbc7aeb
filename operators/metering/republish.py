"""How a shard reports that it has republished all its totals: by a note of kind `resend`."""

import msgspec

from tidegate.operators.model.ports import Note

REPUBLISH_KIND = "resend"


class RepublishedBody(msgspec.Struct):
    """The body of such a note: the shard, and the number of shards. The note's id is `REQUEST/SHARD`."""

    shard: int
    shards: int


def read_republished(note: Note) -> tuple[str, int, int]:
    """Return the id of the republish request, the shard and the number of shards."""
    body = msgspec.json.decode(note.body, type=RepublishedBody)
    return note.id.rpartition("/")[0], body.shard, body.shards
