"""Sessions that were open and are opened again: after their stream was lost, or because another server has them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from statestream.contract.errors import SessionMoved, StateLost
from statestream.contract.tensors import Ints
from statestream.core.log import Log
from statestream.core.opening import Opening, frames
from statestream.core.table import State, Table
from statestream.v1.inference_pb2 import OPEN_MODE_EITHER, OPEN_MODE_RESUME, OpenMode


class Reopened:
    """How they are asked for, and what becomes of those that are bound again."""

    def __init__(self, table: Table, log: Log) -> None:
        self._table = table
        self._log = log
        self._bound: list[tuple[Ints, Ints]] = []

    def openings(self, handles: Ints, not_before: float) -> Iterator[Opening]:
        """What asks for sessions again that are, or were, open."""
        table = self._table
        if table.leaving:
            # One whose close was sent may have gone: it must not be made anew to leave once more.
            going = np.isin(handles, list(table.leaving))
            yield from self._alike(handles[going], OPEN_MODE_RESUME, not_before)
            handles = handles[~going]
        with_initial = [handle for handle in handles.tolist() if handle in table.initial and not table.floor[handle]]
        for handle in with_initial:
            # Found nowhere, it must start from the same values again.
            initial = {name: array[np.newaxis] for name, array in table.initial[handle].items()}
            yield Opening(np.array([handle]), OPEN_MODE_EITHER, initial=initial, not_before=not_before)
        plain = handles[~np.isin(handles, with_initial)] if with_initial else handles
        yield from self._alike(plain, OPEN_MODE_EITHER, not_before)

    def _alike(self, handles: Ints, mode: OpenMode, not_before: float) -> Iterator[Opening]:
        """Openings of sessions that may share a frame."""
        table = self._table
        kinds = np.stack([table.group[handles], table.incarnation[handles]], axis=1)
        for kind in np.unique(kinds, axis=0):
            yield from frames(Opening(handles[(kinds == kind).all(axis=1)], mode, not_before=not_before))

    def bound(self, handles: Ints, positions: Ints) -> None:
        """Sessions are bound again, and are at these positions on the server."""
        table = self._table
        short = positions < table.floor[handles]
        ahead = positions > table.next[handles]
        for handle, position in zip(handles[short].tolist(), positions[short].tolist(), strict=True):
            self._log.fail(handle, _lost(table.ids[handle], position, int(table.floor[handle])))
        for handle, position in zip(handles[ahead].tolist(), positions[ahead].tolist(), strict=True):
            self._log.fail(
                handle,
                SessionMoved(
                    f"session {table.ids[handle]!r} is at position {position}, this client sent steps up to "
                    f"{int(table.next[handle])}: another writer stepped it. Open it again to go on from there."
                ),
            )
        good = ~(short | ahead)
        self._bound.append((handles[good], positions[good]))

    def left_behind(self) -> None:
        """The process that had them in memory, and nowhere else, is not the one that is connected now.

        One that is found there under the same id is another one, even at the same position. What this client can
        replay whole begins there anew.
        """
        table = self._table
        live = table.live()
        for handle in live[table.floor[live] > 0].tolist():
            self._log.fail(
                handle,
                StateLost(
                    f"session {table.ids[handle]!r} was in the memory of another server, which keeps nothing durable; "
                    f"this client can replay from {int(table.floor[handle])} on, so steps before are lost. Open it "
                    "again and feed it from there, or reset it."
                ),
            )

    def go_on(self) -> None:
        """Has those that are bound again go on, whatever becomes of the others."""
        if not self._bound:
            return
        handles = np.concatenate([handles for handles, _ in self._bound])
        positions = np.concatenate([positions for _, positions in self._bound])
        self._bound.clear()
        lost = self._table.state[handles] == State.LOST
        if lost.any():
            self._log.replay(handles[lost], positions[lost])

    def clear(self) -> None:
        """The stream is gone."""
        self._bound.clear()


def _lost(session_id: str, position: int, floor: int) -> StateLost:
    return StateLost(
        f"session {session_id!r} was found at position {position}; this client can replay from {floor} on, "
        "so steps between are lost. Open it again and feed it from there, or reset it.",
        metadata={"position": str(position)},
    )
