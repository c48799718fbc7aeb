"""The streaming engine, imported here and nowhere else: another release, or a fork of it, is a change of this module.

Sources and sinks are subclasses of the engine's, steps are its operators. docs/ARCHITECTURE.md says how wheels of
Bytewax for newer Pythons are built.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import KeyedStream, StatefulBatchLogic
from bytewax.outputs import DynamicSink, FixedPartitionedSink, StatefulSinkPartition, StatelessSinkPartition
from bytewax.recovery import init_db_dir

__all__ = [
    "Dataflow",
    "DynamicSink",
    "FixedPartitionedSink",
    "FixedPartitionedSource",
    "KeyedStream",
    "StatefulBatchLogic",
    "StatefulSinkPartition",
    "StatefulSourcePartition",
    "StatelessSinkPartition",
    "init_db_dir",
    "op",
]
