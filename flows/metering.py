"""The metering flow: usage events in, exact totals, alerts and billable events out.

`python -m bytewax.run tidegate.flows.metering` reads the settings and runs it, with recovery on unless a setting says
otherwise. What it is made of: flows/meter/dataflow.py.
"""

import os

from tidegate.connectors.engine import Dataflow
from tidegate.connectors.files.private_files import keep_private
from tidegate.flows.runtime import recovery
from tidegate.flows.runtime.error_logging import end_in_one_line
from tidegate.settings.settings import load_settings


def flow() -> Dataflow:
    """Return the flow that the settings describe; end the process with one clear line if they can't be used."""
    keep_private()
    with end_in_one_line():
        settings = load_settings()
        if settings.recovery and not recovery.is_on():
            recovery.start_over(settings.data_dir, settings.epoch)
        # Nothing here is linear algebra, whose threads wait for work by spinning.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # Only now, as a process that starts over would import it all twice.
        from tidegate.flows.meter.dataflow import started

        return started(settings)
