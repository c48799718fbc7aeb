"""Acknowledgements as the control log has them: followed by reconciliation, commands and the service."""

from tidegate.operators.billing.acknowledgements import Acknowledgements
from tidegate.operators.model.ports import Acknowledgement, ControlLog

AT_ONCE = 1000


class AcknowledgementFollower:
    """Reads what is new in a control log; one thread at a time."""

    def __init__(self) -> None:
        self._log, self._position = "", ""
        self._known = Acknowledgements()
        self._new: list[Acknowledgement] = []

    def follow(self, log: ControlLog) -> Acknowledgements:
        """Return what is in force in this log. One that was lost and begun again is read from its start."""
        if (name := log.generation()) != self._log:
            self._log, self._position, self._known = name, "", Acknowledgements()
        while records := log.after(self._position, AT_ONCE):
            for position, record in records:
                self._position = position
                if isinstance(record, Acknowledgement):
                    self._known.apply(record)
                    self._new.append(record)
        return self._known

    def take_new(self) -> list[Acknowledgement]:
        """Return the records that were read since the last call, withdrawals too."""
        new, self._new = self._new, []
        return new


class AcknowledgementReader:
    """Reads what is in force, going on from where the last call ended; one thread at a time."""

    def __init__(self) -> None:
        self._follower = AcknowledgementFollower()

    def __call__(self, log: ControlLog) -> Acknowledgements:
        """Return what is in force in a control log."""
        known = self._follower.follow(log)
        # Nobody asks what is new, so it is not kept.
        self._follower.take_new()
        return known


def read_acknowledgements(log: ControlLog) -> Acknowledgements:
    """Return what is in force in a control log."""
    return AcknowledgementFollower().follow(log)
