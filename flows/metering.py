"""The metering flow: usage events in, exact totals, alerts and billable events out.

`python -m bytewax.run tidegate.flows.metering` reads the settings and runs it, with recovery on unless a setting says
otherwise. What it is made of: flows/meter/dataflow.py.
"""

import os
import sys

from tidegate.connectors.engine import Dataflow
from tidegate.connectors.files.private_files import keep_private
from tidegate.flows.runtime import recovery
from tidegate.settings.problems import SettingsError
from tidegate.settings.settings import load_settings


def flow() -> Dataflow:
    """The flow that the settings describe; ends the process with one clear line if they can't be."""
    keep_private()
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.exit(str(error))
    if settings.recovery and not recovery.is_on():
        recovery.start_over(settings.data_dir, settings.epoch)
    # Nothing here is linear algebra, whose threads wait for work by spinning.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Only now, as a process that starts over would import it all twice.
    from tidegate.flows.meter.dataflow import started

    return started(settings)
