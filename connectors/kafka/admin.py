"""Topics are created here and nowhere else: by a command, never by a flow that finds its topic missing."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import confluent_kafka as rd
from confluent_kafka.admin import AdminClient, NewTopic

from tidegate.connectors.kafka.client import Cluster


class Created(NamedTuple):
    """A topic that is there, and whether it was created just now."""

    topic: str
    is_new: bool


def create_topic(
    hosts: Sequence[object],
    path: str,
    *,
    user: str | None = None,
    password: str | None = None,
    sasl: str | None = None,
    tls: bool = False,
    config: Mapping[str, str] | None = None,
    partitions: int,
    replicas: int,
    **_: object,
) -> Created:
    """Create the topic `path` if it is not there; one that is there stays as it is. KafkaError where brokers refuse."""
    cluster = Cluster(hosts, user=user, password=password, sasl=sasl, tls=tls, config=config)
    admin: AdminClient = cluster.made(AdminClient, cluster.settings({}, {}))

    def ask(wait: float) -> bool:
        wanted = NewTopic(path, partitions, replicas)
        try:
            admin.create_topics([wanted], operation_timeout=wait)[path].result()
        except rd.KafkaException as error:
            if error.args[0].code() != rd.KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            return False
        return True

    return Created(path, cluster.answer(ask, f"topic {path!r} cannot be created"))
