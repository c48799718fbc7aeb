"""What may be chosen about reconciliation, beside what it shares with the flow: store, catalog, billing, alerts."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SecretStr

from tidegate.settings.addresses.address import BY_SCHEME, Address
from tidegate.settings.addresses.sources import File, Source
from tidegate.settings.durations import Duration, between
from tidegate.settings.settings import Settings, load_settings_of


class ReportFile(Address):
    """`file:data/drift.ndjson`: one finding a line, appended."""

    connector: ClassVar[str] = "tidegate.connectors.reconciliation.report:LinesToFile"
    scheme: Literal["file"] = "file"
    path: str = Field(min_length=1, description="The file that findings are appended to.")


class ReportStdout(Address):
    """`stdout:`: one finding a line on standard output, instead of a table."""

    connector: ClassVar[str] = "tidegate.connectors.reconciliation.report:LinesToStdout"
    scheme: Literal["stdout"] = "stdout"


Report = Annotated[ReportFile | ReportStdout, BY_SCHEME]


class ReconciliationSettings(Settings):
    """Everything that may be chosen about reconciliation. It reads no source, so none need be named."""

    source: Source = Field(File(path="-"), description="Where the flow's events come from.")
    reconcile_every: Annotated[Duration, between("1m", "7d")] = Field(
        timedelta(minutes=15),
        description="The time between the starts of two runs; the next follows a longer run at once.",
    )
    reconcile_once: bool = Field(
        False, description="Make one run, or finish the one that was begun, and exit."
    )
    reconcile_settle: Annotated[Duration, between("1s", "1h")] = Field(
        timedelta(minutes=3),
        description="How long the billing provider may take to show what it acknowledged.",
    )
    reconcile_repair: bool = Field(
        False, description="Make the repairs that are allowed, instead of only reporting them."
    )
    reconcile_credits: bool = Field(
        False, description="Allow entries in credit ledgers as repairs, where a meter is paid in credits."
    )
    reconcile_tolerance: Decimal = Field(
        Decimal(0),
        ge=0,
        max_digits=24,
        decimal_places=9,
        description="How many units a total may differ by without drift.",
    )
    reconcile_periods: bool = Field(
        False, description="Before a run, pull the subscriptions' periods into the catalog."
    )
    reconcile_report: Report | None = Field(None, description="Where findings are written, as lines of JSON.")

    @property
    def folder(self) -> Any:
        """Where reconciliation keeps its book and journal."""
        return self.data_dir / "reconciliation"


def load_reconciliation_settings(overrides: Mapping[str, object] | None = None) -> ReconciliationSettings:
    """As `load_settings`, for reconciliation."""
    return load_settings_of(ReconciliationSettings, overrides)


class WebhookSettings(Settings):
    """What the endpoint for the provider's webhooks needs, for whoever serves it."""

    source: Source = Field(File(path="-"), description="Where the flow's events come from.")
    dodo_webhook_secrets: SecretStr | None = Field(
        None, description="The secrets that Dodo Payments signs webhooks with: whsec_…, separated by spaces."
    )
