"""The catalog follows the provider's subscriptions before a run, and what contradicts is reported, applied or not."""

import logging
from collections.abc import Callable, Sequence

from tidegate.connectors.dodo.client import DodoError
from tidegate.connectors.dodo.reads import DodoReads
from tidegate.connectors.reconciliation.conflicts import KIND, alert_of, known_in, note_of, over_of
from tidegate.operators.billing.provider import ProviderMeter, Subscription
from tidegate.operators.billing.subscriptions import Conflict, group_metered, is_recorded
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.ports import CatalogConflict, ControlLog, Note, StoreReader, StoreWriter
from tidegate.settings.catalog.file import CatalogError, parse_catalog
from tidegate.settings.catalog.pull import Pulled, apply_periods, pull_catalog

BY = "reconciliation"
NOTES_READ = 10_000

_log = logging.getLogger("tidegate.reconciliation")


class Follower:
    """Applies periods and plans where `applies` says so. `alert` takes an id, a kind, a customer and a line."""

    def __init__(
        self,
        reads: DodoReads,
        control: ControlLog,
        store: StoreWriter,
        reader: StoreReader,
        alert: Callable[[str, str, str, bytes], None],
        clock: Callable[[], int],
        *,
        applies: bool,
    ) -> None:
        self._reads, self._control, self._store, self._reader = reads, control, store, reader
        self._alert, self._clock, self._applies = alert, clock, applies

    def follow(self, subscriptions: Sequence[Subscription], meters: Sequence[ProviderMeter]) -> None:
        """Take the subscriptions over, if that is wanted; a catalog that cannot be changed now stays as it is."""
        newest = self._control.catalog()
        if newest is None:
            return
        try:
            catalog = parse_catalog(newest.text)
            whole = self._completed(catalog, subscriptions)
            made = self._followed(newest.text, whole, [one for one in meters if not one.archived])
        except (CatalogError, CatalogConflict, DodoError) as error:
            _log.error("periods of the provider could not be taken over: %s", error)
            return
        for warning in made.warnings:
            _log.warning("%s", warning)
        self._report(made.conflicts)

    def _followed(self, text: str, whole: Sequence[Subscription], meters: Sequence[ProviderMeter]) -> Pulled:
        if self._applies:
            return apply_periods(self._control, whole, BY, meters=meters)
        return pull_catalog(text, meters, whole, adds_meters=False)

    def _completed(self, catalog: Catalog, listed: Sequence[Subscription]) -> list[Subscription]:
        """Return the subscriptions, each with its meters where they decide anything; one request for each of those."""
        ours = {one.billing_id: name for name, one in catalog.customers.items() if one.billing_id}
        unread = set()
        for billed_as, some in group_metered(listed).items():
            is_plain = len(some) == 1 and is_recorded(catalog, ours.get(billed_as, billed_as), some[0])
            if len(some) > 1 or (self._applies and not is_plain):
                unread |= {one.subscription_id for one in some}
        return [
            self._reads.subscription(one.subscription_id) if one.subscription_id in unread else one
            for one in listed
        ]

    def _report(self, conflicts: Sequence[Conflict]) -> None:
        """List the conflicts among the findings, with an alert for each that is new; take off those that are over."""
        now = self._clock()
        known = known_in(self._reader.notes(KIND, None, NOTES_READ))
        notes = [note_of(one, now) for one in conflicts]
        notes += [over_of(name, now) for name in known.keys() - {one.customer for one in conflicts}]
        raised = [(one, *alert_of(one, now)) for one in conflicts]
        new = [
            (one, id, line)
            for one, id, line in raised
            if known.get(one.customer) != one.why or not self._was_raised(one.customer, id)
        ]
        for one in conflicts:
            _log.error("%s", one)
        for one, id, line in new:
            self._alert(id, "drift", one.customer, line)
        notes += [Note("alert", id, one.customer, now, line) for one, id, line in new]
        if notes:
            self._store.write([], [], notes)

    def _was_raised(self, customer: str, id: str) -> bool:
        """Return whether there was an alert: a webhook lists a conflict, and leaves the alert to the next run."""
        return any(note.id == id for note in self._reader.notes("alert", customer, NOTES_READ))
