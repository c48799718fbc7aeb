"""The servers of the tests themselves: they end with whoever started them, and a cluster survives one of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.connectors.kafka.helpers import Reader, source, until
from tests.support.kafka.get import NotToBeHad, jars
from tests.support.kafka_server import Brokers
from tests.support.options import option
from tests.support.places import ROOT
from tests.support.servers import lacking

PROGRAM = """
from tests.support.kafka_server import Brokers
import time
brokers = Brokers()
print(*(process.pid for process in brokers._processes.values()), flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_brokers_end_with_the_process_that_started_them_also_when_it_is_killed(brokers: Brokers) -> None:
    """Else a killed test run would leave them behind."""
    command = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert pids and all(map(is_running, pids))
        starter.send_signal(signal.SIGKILL)
    until(lambda: not any(map(is_running, pids)), "a broker is left")


@pytest.mark.slow
@pytest.mark.skipif(not option("TIDEGATE_KAFKA_CLUSTER"), reason="only with TIDEGATE_KAFKA_CLUSTER=1")
def test_a_cluster_of_three_goes_on_without_one() -> None:
    """A partition's leader dies, another broker takes over, and reading goes on where it was."""
    try:
        jars()
    except NotToBeHad as why:
        lacking(f"needs three brokers: {why}")
    cluster = Brokers(3)
    try:
        topic = cluster.topic(3, replicas=3, min_insync_replicas="2")
        for partition in range(3):
            cluster.put(topic, [b"%d:1" % partition], partition)
        reader = Reader(source(cluster, topic))
        assert len(reader.read(3)) == 3
        leader = cluster.admin.list_topics(topic, timeout=10).topics[topic].partitions[0].leader
        cluster.kill(leader)
        for partition in range(3):
            cluster.put(topic, [b"%d:2" % partition], partition)
        assert sorted(reader.read(6)) == sorted(b"%d:%d" % (p, n) for p in range(3) for n in (1, 2))
        reader.close()
    finally:
        cluster.close()
