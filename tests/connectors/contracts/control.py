"""What every store's control log promises, as tests to inherit: nothing lost, nothing twice, versions without gaps."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing
from typing import Protocol

import msgspec
import pytest
from bytewax.inputs import StatefulSourcePartition

from tidegate.flows.meter.control_source import CatalogNews, ControlItem, ControlSource
from tidegate.operators.model.catalog import NO_CATALOG
from tidegate.operators.model.ports import (
    Acknowledgement,
    Adjustment,
    CatalogConflict,
    ControlConflict,
    ControlLog,
    ControlRecord,
    Resend,
)


class ControlPlace(Protocol):
    """Where a store is; every call opens a log of its own, as another process would."""

    def open_control(self) -> ControlLog: ...


def adjustment(id: str, quantity: str = "-2.5") -> Adjustment:
    return Adjustment(
        id=id, customer="a{b}", meter="calls", at=5, quantity=quantity, reason="refund, é", by="ops"
    )


def acknowledgement(id: str) -> Acknowledgement:
    return Acknowledgement(
        id=id, customer="a{b}", meter="calls", start=5, up_to="-1", reason="é", by="ops", at=6
    )


def reading(place: ControlPlace, state: str | None = None) -> StatefulSourcePartition[ControlItem, str]:
    """The flow's control input over this log, as it goes on from a snapshot."""
    source = ControlSource(place.open_control, endless=True, catalog=NO_CATALOG, look=lambda log: NO_CATALOG)
    return source.build_part("control", "control", state)


def ids(items: Iterable[ControlItem]) -> list[str]:
    return [item.id for item in items if not isinstance(item, CatalogNews)]


class ControlContract(ABC):
    @abstractmethod
    def fresh_control(self) -> AbstractContextManager[ControlPlace]:
        """An empty store of its own."""

    def test_records_come_in_their_order_from_any_position(self) -> None:
        with self.fresh_control() as place, closing(place.open_control()) as log:
            records: list[ControlRecord] = [
                adjustment("1"),
                Resend(id="2"),
                adjustment("3", "1e30"),
                acknowledgement("4"),
            ]
            positions = [log.append(record) for record in records]
            with closing(place.open_control()) as other:
                found = other.after("")
                assert [control.record for control in found] == records
                assert [control.position for control in found] == positions
                for i, position in enumerate(positions):
                    assert [control.record for control in other.after(position)] == records[i + 1 :]
                assert [control.record for control in other.after("", limit=2)] == records[:2]

    def test_an_id_counts_once(self) -> None:
        """A repair that is sent again after a lost answer must not adjust twice."""
        with self.fresh_control() as place, closing(place.open_control()) as log:
            first = log.append(adjustment("1"))
            again = msgspec.structs.replace(adjustment("1", "-2.500"), reason="asked again", by="me")
            assert log.append(again) == first
            assert [control.record for control in log.after("")] == [adjustment("1")]

    def test_the_flow_passes_over_what_is_for_reconciliation(self) -> None:
        with self.fresh_control() as place, closing(place.open_control()) as log:
            part = reading(place)
            try:
                log.append(acknowledgement("1"))
                log.append(adjustment("2"))
                assert ids(part.next_batch()) == ["2"]
            finally:
                part.close()

    @pytest.mark.parametrize(
        "other",
        [
            adjustment("1", "999"),
            msgspec.structs.replace(adjustment("1"), customer="b"),
            msgspec.structs.replace(adjustment("1"), meter="other"),
            msgspec.structs.replace(adjustment("1"), at=6),
            Resend(id="1"),
            acknowledgement("1"),
        ],
        ids=["quantity", "customer", "meter", "time", "kind", "acknowledgement"],
    )
    def test_an_id_that_asks_for_something_else_is_refused(self, other: ControlRecord) -> None:
        """Or who asks believes that it was done."""
        with self.fresh_control() as place, closing(place.open_control()) as log:
            log.append(adjustment("1"))
            with pytest.raises(ControlConflict, match="'1'"):
                log.append(other)
            assert [control.record for control in log.after("")] == [adjustment("1")]

    def test_a_log_has_a_name_and_each_record_its_place(self) -> None:
        """By which a reader knows that it goes on in the log that it began in."""
        with self.fresh_control() as place, closing(place.open_control()) as log:
            name = log.generation()
            positions = [log.append(adjustment(id)) for id in "12"]
            with closing(place.open_control()) as other:
                assert other.generation() == log.generation() == name
                assert [other.at(position) for position in positions] == other.after("")
                assert other.at("999") is None
        with self.fresh_control() as place, closing(place.open_control()) as log:
            assert log.generation() != name
            assert log.at(positions[0]) is None

    def test_a_log_that_begins_again_is_read_from_its_start(self) -> None:
        """Positions of the log that was lost say nothing of this one; adjustments were passed over by them."""
        with self.fresh_control() as place:
            first = reading(place)
            with closing(place.open_control()) as log:
                for id in "123":
                    log.append(adjustment(id))
            assert ids(first.next_batch()) == ["1", "2", "3"]
            state = first.snapshot()
            resumed = reading(place, state)
            assert ids(resumed.next_batch()) == []
        with self.fresh_control() as place:
            with closing(place.open_control()) as log:
                log.append(adjustment("4"))
                log.append(adjustment("5"))
                name = log.generation()
            second = reading(place, state)
            assert ids(second.next_batch()) == [f"store-{name}", "4", "5"]
            assert ids(reading(place, second.snapshot()).next_batch()) == []

    def test_a_position_of_an_older_version_goes_on_where_it_was(self) -> None:
        with self.fresh_control() as place:
            with closing(place.open_control()) as log:
                positions = [log.append(adjustment(id)) for id in "12"]
            assert ids(reading(place, positions[0]).next_batch()) == ["2"]
            assert ids(reading(place, "9-9-9").next_batch())[1:] == ["1", "2"]

    def test_a_resend_is_asked_for_by_a_record(self) -> None:
        with self.fresh_control() as place, closing(place.open_control()) as log:
            ids = [log.resend(anew=True), log.resend(anew=True)]
            assert [control.record for control in log.after("")] == [Resend(id=id) for id in ids]
            assert ids[0] != ids[1]

    def test_catalogs_are_numbered_and_kept(self) -> None:
        with self.fresh_control() as place, closing(place.open_control()) as log:
            assert (log.catalog(), log.catalog_number(), log.catalogs()) == (None, 0, [])
            first = log.apply("meters: 1 # é", origin="file", by="catalog.yaml")
            second = log.apply("meters: 2", origin="api", by="key_1", note="why", expected=1)
            with closing(place.open_control()) as other:
                assert (first.number, second.number, other.catalog_number()) == (1, 2, 2)
                assert (other.catalog(), other.catalog(1), other.catalog(3)) == (second, first, None)
                assert other.catalogs() == [second, first]
                assert other.catalogs(limit=1) == [second]
            assert (second.text, second.origin, second.by, second.note) == (
                "meters: 2",
                "api",
                "key_1",
                "why",
            )

    def test_who_looked_at_an_older_catalog_applies_nothing(self) -> None:
        with self.fresh_control() as place, closing(place.open_control()) as log:
            log.apply("1", origin="file", by="f", expected=0)
            with pytest.raises(CatalogConflict) as caught:
                log.apply("2", origin="api", by="b", expected=0)
            assert caught.value.current == 1
            assert log.catalog_number() == 1

    def test_of_many_at_once_each_version_is_one(self) -> None:
        """Two people who save at the same moment don't overwrite each other unseen."""
        with self.fresh_control() as place:
            outcomes: list[str] = []

            def save(name: str) -> None:
                with closing(place.open_control()) as log:
                    for _ in range(10):
                        try:
                            number = log.apply(
                                name, origin="api", by=name, expected=log.catalog_number()
                            ).number
                            outcomes.append(f"{number}{name}")
                        except CatalogConflict:
                            outcomes.append("")

            people = [threading.Thread(target=save, args=(name,)) for name in "abc"]
            for person in people:
                person.start()
            for person in people:
                person.join()
            with closing(place.open_control()) as log:
                kept = [f"{version.number}{version.text}" for version in log.catalogs()]
            assert sorted(kept) == sorted(filter(None, outcomes))
            assert sorted(int(one[:-1]) for one in kept) == list(range(1, len(kept) + 1))
