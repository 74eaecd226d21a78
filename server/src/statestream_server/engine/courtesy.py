"""Courtesy: how batches of forecasts leave live steps their turns of the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

from statestream_server.engine.lane import Lane
from statestream_server.engine.predictions import Predictions
from statestream_server.engine.work import Priority

LIVE_SECONDS: Final = 0.1
"""So long after a live step more are expected."""
BESIDE_LIVE: Final = 8
"""Then batches of forecasts are so many times shorter: a live step waits for one of them in some of the turns of the
loop in which it is read, run and answered."""
QUIET_SECONDS: Final = 1e-4
"""What a turn of the loop takes at most in which nothing comes."""
MOST_GIVEN: Final = 4
"""Turns of the loop that such a batch gives way at most, one after the other, however many live steps come."""


class Courtesy:
    """What an engine remembers of live steps while it runs forecasts.

    Attributes:
        lived: When the last live work came that ran.
        over: When the engine last gave the loop back: after a batch, or where one gave way.
    """

    def __init__(self) -> None:
        """Nobody stepped yet."""
        self.lived = self.over = -math.inf
        self._given = 0
        """Turns in which batches of forecasts gave way since the last one that ran."""

    @property
    def beside_live(self) -> bool:
        """Whether live steps are expected."""
        return time.perf_counter() - self.lived <= LIVE_SECONDS

    def gives_way(self, queues: Sequence[Lane | Predictions]) -> bool:
        """Whether a batch of forecasts waits for another turn of the loop, as live steps are on their way through it.

        A live step is read, run and answered in several turns, and would wait for a batch in each of them. So where
        nothing else is queued, these batches run in turns in which nothing came, and in one of a few in any case.
        """
        ended, self.over = self.over, time.perf_counter()
        if (
            self.over - self.lived > LIVE_SECONDS
            or self.over - ended < QUIET_SECONDS
            or self._given >= MOST_GIVEN
            or any(head.priority is not Priority.FORECAST for queue in queues for head in queue.heads())
        ):
            self._given = 0
            return False
        self._given += 1
        return True
