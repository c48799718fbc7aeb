"""How a shard says that it has written every total again, as a Resend had asked: by a note of kind `resend`."""

import msgspec

from tidegate.operators.model.ports import Note

RESEND = "resend"


class Resent(msgspec.Struct):
    """The body of such a note: which shard, of how many. The note's id is `RESEND/SHARD`."""

    shard: int
    shards: int


def resent(note: Note) -> tuple[str, int, int]:
    """The resend's id, the shard and the number of shards."""
    body = msgspec.json.decode(note.body, type=Resent)
    return note.id.rpartition("/")[0], body.shard, body.shards
