"""The heartbeat of a flow that has come to the end of its input, for stores that a benchmark fills itself."""

from tidegate.operators.model.freshness import Heartbeat

ENDED = Heartbeat(0, 1, "benchmark", 1, 1, {}, ended=True)
