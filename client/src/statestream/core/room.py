"""Room: for bytes that are under way (windows, by model), and for what may be sent again (the replay buffer)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

import numpy as np

from statestream.contract.tensors import Ints, Mask
from statestream.core.blocks import Block
from statestream.core.sinks import DISCARD
from statestream.core.table import Table
from statestream.core.tickets import Lane

MOST: Final = 16 << 20
"""A window is not used beyond it: the server is busy with less, and more would only wait there."""
_AT_ONCE: Final = 64
"""Blocks that one call of `advance` moves on at most: what a second brought becomes durable at one moment."""


class Window:
    """What is under way of one model, in one version.

    It is counted as the server does, and for longer: from before a frame is written until its last answer was read. So
    the server never finds more in it.

    Attributes:
        held: Bytes under way.
        most: How many may be; one frame may have more where nothing else is under way.
        full: Frames wait for room, and what is asked for later waits behind them; while frames are chosen.
    """

    __slots__ = ("full", "held", "most")

    def __init__(self) -> None:
        self.held = 0
        self.most = MOST
        self.full = False

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes more may be under way."""
        return not self.held or self.held + nbytes <= self.most


class Windows:
    """The windows of one stream."""

    def __init__(self) -> None:
        self._by_model: dict[tuple[str, int], Window] = {}
        self._by_lane: dict[Lane, Window] = {}

    def __len__(self) -> int:
        return len(self._by_model)

    @property
    def held(self) -> int:
        """Bytes under way of all models."""
        return sum(window.held for window in self._by_model.values())

    def of(self, lane: Lane) -> Window:
        """The window that chunks of a lane have room in."""
        window = self._by_lane.get(lane)
        if window is None:
            window = self._by_lane[lane] = self._window(lane.model, lane.version)
        return window

    def told(self, model: str, version: int, most: int) -> None:
        """The server said how many bytes a window has; 0 where it says nothing."""
        if most:
            self._window(model, version).most = min(most, MOST)

    def lost(self) -> None:
        """The stream is gone, and nothing is under way."""
        for window in self._by_model.values():
            window.held = 0

    def _window(self, model: str, version: int) -> Window:
        return self._by_model.setdefault((model, version), Window())


class ReplayBuffer:
    """Blocks in the order in which they left: first those that are durable, then the others.

    A block leaves once all its chunks are answered and durable (or, where the server keeps nothing
    durable, answered) and `keep_seconds` have passed, or room is needed.
    """

    def __init__(self, table: Table, limit: int, keep_seconds: float, *, lose_when_full: bool) -> None:
        self.limit = limit
        self.keep_seconds = keep_seconds
        self.ephemeral_server = False
        self.lose_when_full = lose_when_full
        self.bytes = 0
        self._full = False
        self._table = table
        self._grace: deque[Block] = deque()
        self._blocks: deque[Block] = deque()

    def __iter__(self) -> Iterator[Block]:
        yield from self._grace
        yield from self._blocks

    def __len__(self) -> int:
        return len(self._grace) + len(self._blocks)

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes fit; anything fits into an empty buffer."""
        return self.bytes + nbytes <= self.limit or self.bytes == 0

    def admits(self, nbytes: int) -> bool:
        """Whether so many bytes fit, once what may be dropped for them is."""
        return self.bytes + nbytes <= self.limit or (not self._full and self._make_room(nbytes)) or not self.bytes

    def look_again(self) -> None:
        """What is kept may be needed no longer.

        Callers who wait for room ask for it at every turn, and a buffer of small steps has a hundred thousand blocks:
        so they are gone through in vain once, and not again before this.
        """
        self._full = False

    def add(self, block: Block) -> None:
        """Keeps a block."""
        block.keep(self._table)
        self.bytes += block.nbytes
        self._blocks.append(block)

    def forget(self, handles: Ints) -> None:
        """The histories of sessions that have nothing under way end here: none of their chunks is replayed again."""
        self.look_again()
        gone = np.zeros(self._table.size, np.bool_)
        gone[handles] = True
        for block in self:
            for row in np.flatnonzero(gone[block.handles]).tolist():
                block.kill(row)

    def answered(self, behind: Ints) -> list[Block]:
        """The answered chunks that start at a position in `behind`, by handle, or above it: as blocks to send again."""
        found: list[Block] = []
        for block in self:
            if block.left == len(block):
                continue
            need: Mask = (block.starts >= behind[block.handles]) & ~block.still_waiting()
            if block.dead is not None:
                need &= ~block.dead
            if need.any():
                found.append(block.take(np.flatnonzero(need), DISCARD))
        return found

    def advance(self, now: float) -> None:
        """Lets go of some of what the oldest blocks no longer need; costs little where nothing changed.

        It is called with every answer, so that it keeps up and none of them waits for all that became durable.
        """
        blocks, grace = self._blocks, self._grace
        if self.ephemeral_server or self.lose_when_full:  # An answer is enough to make room.
            self.look_again()
        for _ in range(_AT_ONCE):
            if not blocks:
                break
            block = blocks[0]
            if block.left or not (self.ephemeral_server or block.is_durable(self._table)):
                break
            blocks.popleft()
            self._full = False
            if self.keep_seconds and not self.ephemeral_server:
                block.durable_at = now
                grace.append(block)
            else:
                self._drop(block)
        until = now - self.keep_seconds
        for _ in range(_AT_ONCE):
            if not grace or (grace[0].durable_at > until and self.bytes <= self.limit // 2):
                break
            self._drop(grace.popleft())

    def _make_room(self, nbytes: int) -> bool:
        """Drops whatever may be dropped; where losses are accepted also answered chunks that are not durable yet."""
        while self._grace and not self.has_room(nbytes):
            self._drop(self._grace.popleft())
        if self.has_room(nbytes):
            return True
        kept = list[Block]()
        blocks = self._blocks
        while blocks and not (self.lose_when_full and self.has_room(nbytes)):
            block = blocks.popleft()
            if not block.left and (self.ephemeral_server or self.lose_when_full or block.is_durable(self._table)):
                self._drop(block)
            else:
                kept.append(block)
        blocks.extendleft(reversed(kept))
        self._full = not self.has_room(nbytes)
        return not self._full

    def _drop(self, block: Block) -> None:
        self.bytes -= block.nbytes
        block.drop(self._table)
