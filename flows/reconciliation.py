"""The reconciliation flow: what customers see against what they will be invoiced, explained and, if allowed, repaired.

`python -m bytewax.run tidegate.flows.reconciliation` reads the settings and makes a pass every so often, or with
TIDEGATE_RECONCILE_ONCE one. What it is made of: flows/reconcile/dataflow.py.
"""

from tidegate.connectors.engine import Dataflow
from tidegate.connectors.files.private_files import keep_private
from tidegate.flows.runtime.error_logging import end_at_once, end_in_one_line
from tidegate.settings.reconciliation import load_reconciliation_settings


def flow() -> Dataflow:
    """Return the flow that the settings describe; end the process with one clear line if they can't be used."""
    keep_private()
    with end_in_one_line():
        settings = load_reconciliation_settings()
        # Only here, as it needs the library of an extra.
        from tidegate.flows.reconcile.dataflow import build

        built = build(settings)
        end_at_once()
        return built
