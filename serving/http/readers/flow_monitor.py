"""Whether the flow counts, as the service sees it by the heartbeats, and the alert when that changes.

The flow that would send the alert may be what is dead, so the service writes it into the store itself and logs it; the
metric `tidegate_flow_shards_behind` is what pagers should watch.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Final, Literal

import msgspec

from tidegate.operators.model.ports import Note, StoreError, StoreWriter
from tidegate.serving.gate import AsyncGate
from tidegate.serving.gate.freshness import FlowState, describe_state

LOOK_EVERY_S: Final = 0.5

_log = logging.getLogger("tidegate.service")


class FlowMonitor:
    """Looks at the flow's state for as long as `run` is not cancelled. A state that changed is reported once."""

    def __init__(
        self,
        gate: Callable[[], AsyncGate],
        max_lag: timedelta,
        open_store: Callable[[], StoreWriter],
        clock: Callable[[], int],
    ) -> None:
        self._gate, self._max_lag = gate, max_lag
        self._open_store, self._clock = open_store, clock
        self._was_live, self._problem = True, ""

    def state(self) -> FlowState:
        return self._gate().flow_state(self._max_lag)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Report a change of state, in the log and as an alert; a store that is away is tried at the next look."""
        state = self.state()
        if state.is_live == self._was_live:
            return
        detail = describe_state(state)
        try:
            self._write("resolved" if state.is_live else "raised", state, detail)
        except StoreError as error:
            if str(error) != self._problem:
                _log.warning("the flow's state cannot be written as an alert: %s", error)
            self._problem = str(error)
            return
        self._was_live, self._problem = state.is_live, ""
        if state.is_live:
            _log.warning("the flow counts again")
        else:
            _log.error("the flow is behind: %s", detail)

    def _write(self, change: Literal["raised", "resolved"], state: FlowState, detail: str) -> None:
        now = self._clock()
        fields = {
            "kind": "flow_behind",
            "state": change,
            "shards": state.shards,
            "behind": state.behind,
            "lag": state.lag,
            "text": f"the flow is behind: {detail}" if detail else "the flow counts again",
            "at": now,
        }
        with closing(self._open_store()) as store:
            store.write([], [], [Note("alert", "flow_behind", "", now, msgspec.json.encode(fields))])
