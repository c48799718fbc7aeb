"""What every store's control log promises, as tests to inherit: nothing lost, nothing twice, versions without gaps."""

import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, closing
from typing import Protocol

import pytest

from operators.ports import Adjustment, CatalogConflict, ControlLog, Resend


class ControlPlace(Protocol):
    """Where a store is; every call opens a log of its own, as another process would."""

    def open_control(self) -> ControlLog: ...


def adjustment(id: str, quantity: str = "-2.5") -> Adjustment:
    return Adjustment(
        id=id, customer="a{b}", meter="calls", at=5, quantity=quantity, reason="refund, é", by="ops"
    )


class ControlContract(ABC):
    @abstractmethod
    def fresh_control(self) -> AbstractContextManager[ControlPlace]:
        """An empty store of its own."""

    def test_records_come_in_their_order_from_any_position(self) -> None:
        with self.fresh_control() as place, closing(place.open_control()) as log:
            records = [adjustment("1"), Resend(id="2"), adjustment("3", "1e30")]
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
            assert log.append(adjustment("1", "999")) == first
            assert [control.record for control in log.after("")] == [adjustment("1")]

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
