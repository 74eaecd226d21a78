"""Taps: who watches the steps of a session as they are applied. Without anybody who does they cost one look a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array
from statestream_server.sessions.admission.chunks import Chunks
from statestream_server.stores.base import Key

NUMBERS: Final = 8
"""Numbers of a tensor that are kept of each step: a chart shows no more."""
_MOST: Final = 32
"""Sessions of one tenant that are watched at a time."""
_MOST_OF_ALL: Final = 256
_STEPS: Final = 512
"""Steps that are kept of each, the newest."""
_SECONDS: Final = 10.0
"""So long after somebody asked last, a session is watched."""


class Seen(NamedTuple):
    """A step that was applied.

    Attributes:
        number: Its number among those that the tap saw, from 1 on.
        position: Where the session stands behind it.
        inputs: The first numbers of every input.
        outputs: The first numbers of every output, and of scores where the chunk was scored.
    """

    number: int
    position: int
    inputs: Sequence[Array]
    outputs: Sequence[Array]


@dataclass(slots=True)
class Tap:
    """What was seen of one session.

    Attributes:
        until: When it is not watched any more, on the clock of the taps.
        count: Steps that were seen.
        steps: The newest of them.
    """

    until: float
    count: int = 0
    steps: deque[Seen] = field(default_factory=lambda: deque(maxlen=_STEPS))


class Taps:
    """The sessions that are watched, by key: whichever table and row they have, and whoever steps them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Nobody watches; `clock` gives seconds that never go back."""
        self._clock = clock
        self.watched: dict[Key, Tap] = {}
        """By session; who applies chunks calls `saw` where it is not empty."""

    def watch(self, key: Key) -> Tap:
        """What was seen of a session since it is watched; it is watched for some seconds more.

        Raises:
            Overloaded: Too many others are watched.
        """
        now = self._clock()
        found = self.watched.get(key)
        if found is None or found.until < now:
            self._forget(now)
            own = sum(other.tenant == key.tenant for other in self.watched)
            if own >= _MOST or len(self.watched) >= _MOST_OF_ALL:
                whose = f"{own} of your sessions" if own >= _MOST else f"{len(self.watched)} sessions"
                raise errors.Overloaded(
                    f"{whose} are watched already, as many as may be; close pages that watch others",
                    retry_after=_SECONDS,
                )
            found = self.watched[key] = Tap(now)
        found.until = now + _SECONDS
        return found

    def saw(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        """Keeps what watched sessions have among chunks that were applied, with their packed outputs."""
        now, table = self._clock(), chunks.table
        if any(tap.until < now for tap in self.watched.values()):
            self._forget(now)
        for key, tap in self.watched.items():
            row = table.rows_of(key.tenant).get(key.id) if key.model == table.model.name else None
            if row is None:
                continue
            for place in np.flatnonzero(chunks.rows == row).tolist():
                _keep(tap, chunks, place, outputs)

    def _forget(self, now: float) -> None:
        for key in [key for key, tap in self.watched.items() if tap.until < now]:
            del self.watched[key]


def _keep(tap: Tap, chunks: Chunks, place: int, outputs: Sequence[Array]) -> None:
    steps, at = int(chunks.lengths.column[place]), int(chunks.lengths.offsets[place])
    start = int(chunks.starts[place])
    for step in range(max(0, steps - _STEPS), steps):
        tap.count += 1
        came, gave = ([_first(array[at + step]) for array in arrays] for arrays in (chunks.inputs, outputs))
        tap.steps.append(Seen(tap.count, start + step + 1, came, gave))


def _first(array: Array) -> Array:
    return np.array(array).reshape(-1)[:NUMBERS]  # A copy: the rest of what it lay in may go.
