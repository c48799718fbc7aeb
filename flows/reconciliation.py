"""The reconciliation flow: what customers see against what they will be invoiced, explained and, if allowed, repaired.

`python -m bytewax.run tidegate.flows.reconciliation` reads the settings and makes a pass every so often, or with
TIDEGATE_RECONCILE_ONCE one. What it is made of: flows/reconcile/dataflow.py.
"""

import sys

from bytewax.dataflow import Dataflow

from tidegate.connectors.dodo.client import DodoError
from tidegate.connectors.files.private_files import keep_private
from tidegate.connectors.outbox.ledger import LedgerError
from tidegate.connectors.outbox.outbox import OutboxError
from tidegate.connectors.reconciliation.findings import BookError
from tidegate.flows.reconcile.dataflow import build
from tidegate.operators.model.ports import StoreError
from tidegate.settings.catalog.file import CatalogError
from tidegate.settings.problems import SettingsError
from tidegate.settings.reconciliation import load_reconciliation_settings


def flow() -> Dataflow:
    """Return the flow that the settings describe; end the process with one clear line if they can't be used."""
    keep_private()
    try:
        return build(load_reconciliation_settings())
    except (SettingsError, CatalogError, StoreError, BookError, OutboxError, LedgerError, DodoError) as error:
        sys.exit(str(error))
