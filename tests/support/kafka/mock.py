"""librdkafka's mock cluster by its C interface, which the Python package has inside but does not hand out.

Source: https://github.com/confluentinc/librdkafka/blob/master/src/rdkafka_mock.h
"""

import ctypes
from pathlib import Path

import confluent_kafka

_PRODUCER = 0


class MockCluster:
    """Brokers in this process. They keep 5 MiB or 100,000 messages a partition, and end with `close`."""

    def __init__(self, brokers: int = 1) -> None:
        [library] = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka*")
        self._lib = lib = ctypes.CDLL(str(library))
        for made in (lib.rd_kafka_conf_new, lib.rd_kafka_new, lib.rd_kafka_mock_cluster_new):
            made.restype = ctypes.c_void_p
        lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        said = ctypes.create_string_buffer(500)
        conf = ctypes.c_void_p(lib.rd_kafka_conf_new())
        lib.rd_kafka_conf_set(conf, b"log_level", b"0", said, ctypes.c_size_t(len(said)))
        self._client = ctypes.c_void_p(lib.rd_kafka_new(_PRODUCER, conf, said, ctypes.c_size_t(len(said))))
        assert self._client, said.value
        self._cluster = ctypes.c_void_p(lib.rd_kafka_mock_cluster_new(self._client, brokers))
        # Without one nobody answers what administrators ask.
        lib.rd_kafka_mock_set_controller_id(self._cluster, 1)

    @property
    def bootstrap(self) -> str:
        """Its addresses."""
        found: bytes = self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return found.decode()

    def create(self, topic: str, partitions: int) -> None:
        """A topic, with a replica on one broker."""
        failed = self._lib.rd_kafka_mock_topic_create(self._cluster, topic.encode(), partitions, 1)
        assert not failed, failed

    def close(self) -> None:
        self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
        self._lib.rd_kafka_destroy(self._client)
