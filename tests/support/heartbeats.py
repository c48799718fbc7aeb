"""Heartbeats for stores that no flow writes in a test."""

from tidegate.operators.model.freshness import Heartbeat

ENDED = Heartbeat(0, 1, "0", 1, 1, {}, ended=True)
"""Of a flow whose input has ended: the totals are as fresh as they will ever be."""
