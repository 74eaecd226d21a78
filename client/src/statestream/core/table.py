"""The sessions of one client as columns: what is known of each, by handle. No rule of the protocol lives here."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from statestream.contract.errors import StatestreamError
from statestream.contract.tensors import Array, Ints

DURABLE_FOREVER: Final = np.iinfo(np.int64).max
"""The durable position of a session that needs no replay any more."""

DETACHED, DELETED, ENDED = 1, 2, 3
"""What the column `closing` has of a session whose close, or delete, was submitted; of one that was deleted, and that
others than who deleted it still have."""


class State(enum.IntEnum):
    """What can be done with a handle now."""

    FREE = 0
    OPENING = 1
    """Asked for the first time; no position is known yet."""
    OPEN = 2
    HELD = 3
    """Open; a refused chunk waits for its next try."""
    LOST = 4
    """Was open on a stream that is gone; to be opened again."""
    FAILED = 5
    """Not usable any more; `Table.failures` says why."""


class Group(NamedTuple):
    """What the sessions of one OpenFrame have in common; the alias only until they are open in a version."""

    model: str
    version: int
    ephemeral: bool
    alias: str = ""


class Table:
    """Columns by handle. Handles are dense; one is used again once no buffered chunk names it."""

    state: Array
    group: Ints
    epoch: Ints
    incarnation: Ints
    next: Ints
    sent: Ints
    answered: Ints
    durable: Ints
    origin: Ints
    floor: Ints
    acked: Ints
    in_flight: Ints
    unacked: Ints
    stale: Ints
    refs: Ints
    attempts: Ints
    closing: Ints
    holders: Ints
    stalled: Ints
    stalled_at: Ints
    stalled_epoch: Ints

    _COLUMNS = (
        "group",  # index into groups
        "epoch",  # of the claim
        "incarnation",  # of the claim
        "next",  # where the next chunk that is submitted starts
        "sent",  # where the next chunk that is sent starts
        "answered",  # the caller has all replies below this
        "durable",  # survives a crash
        "origin",  # the position behind the last reset of which the caller has the reply
        "floor",  # chunks from here on can be replayed
        "acked",  # what the server was told of `answered`
        "in_flight",  # chunks sent and not answered
        "unacked",  # chunks answered and not acknowledged
        "stale",  # replies that are still to come for chunks given up
        "refs",  # buffered blocks that name the handle
        "attempts",  # times opened again without an answer since
        "closing",  # whether it was asked to be let go: see `Closings`
        "holders",  # callers who have it open: see `Sharing`
        "stalled",  # since when it waits without an answer, in milliseconds, 0 where it does not: see `Overdue`
        "stalled_at",  # `answered` then
        "stalled_epoch",  # `epoch` then
    )

    def __init__(self) -> None:
        self.size = 0
        self.state = np.zeros(0, np.uint8)
        for name in self._COLUMNS:
            setattr(self, name, np.zeros(0, np.int64))
        self.scratch = np.zeros(0, np.int64)
        self.ids: list[str] = []
        self.groups: list[Group] = []
        self.failures: dict[int, StatestreamError] = {}
        self.durable_then: dict[int, int] = {}
        """What was known to be durable of sessions that failed; in the column they need no replay any more."""
        self.cursors: dict[int, bytes] = {}
        """The cursors of those that have one: of the last chunk, or mark, of which the caller has the reply."""
        self.initial: dict[int, dict[str, Array]] = {}
        self.untaken: dict[int, int] = {}
        """Where replies start that came again on opening and that the caller has not taken yet."""
        self.unheard: dict[int, bool] = {}
        """Sessions that failed while nobody waited for them: whether all that was answered was known to be durable."""
        self.leaving: set[int] = set()
        """Sessions whose close was sent: they may have gone."""
        self.names: dict[str, dict[str, int]] = {}
        """The handle of every session, by model and id: the last one that was taken for it."""
        self._group_numbers: dict[Group, int] = {}
        self._free: list[int] = []
        self._limbo: list[int] = []

    def allocate(self, group: Group, ids: Sequence[str]) -> Ints:
        """Takes handles for new sessions; they are OPENING."""
        count = len(ids)
        if len(self._free) < count and self._limbo:
            self._collect()
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        first = self.size
        self._grow(first + count - len(reused))
        handles = np.concatenate([np.array(reused, np.int64), np.arange(first, self.size, dtype=np.int64)])
        for name in self._COLUMNS:
            getattr(self, name)[handles] = 0
        self.state[handles] = State.OPENING
        self.group[handles] = self.group_number(group)
        for handle, session_id in zip(reused, ids, strict=False):
            self.ids[handle] = session_id
        self.ids.extend(ids[len(reused) :])
        self.names.setdefault(group.model, {}).update(zip(ids, handles.tolist(), strict=True))
        return handles

    def release(self, handles: Ints) -> None:
        """Gives handles back; buffered chunks that name them need no replay. Free ones stay as they are."""
        handles = handles[self.state[handles] != State.FREE]
        self.state[handles] = State.FREE
        self.durable[handles] = DURABLE_FOREVER
        self._limbo.extend(handles.tolist())
        self.forget_names(handles)
        self.leaving.difference_update(handles.tolist())
        if self.failures or self.initial or self.untaken or self.cursors:
            for handle in handles.tolist():
                self.cursors.pop(handle, None)
                self.failures.pop(handle, None)
                self.durable_then.pop(handle, None)
                self.untaken.pop(handle, None)
                self.initial.pop(handle, None)
                self.unheard.pop(handle, None)

    def forget_names(self, handles: Ints) -> None:
        """The sessions' ids stand for nothing any more, or for another handle."""
        for handle, number in zip(handles.tolist(), self.group[handles].tolist(), strict=True):
            names, session_id = self.names[self.groups[number].model], self.ids[handle]
            if names.get(session_id) == handle:
                del names[session_id]

    def is_current(self, handle: int) -> bool:
        """Whether the session's id stands for this handle, not for one that was taken since."""
        return self.names[self.groups[self.group.item(handle)].model].get(self.ids[handle], handle) == handle

    def failure(self, handle: int) -> StatestreamError:
        """What a caller of a failed session is told: a copy, so that each raises one of its own."""
        self.unheard.pop(handle, None)
        error = self.failures[handle]
        return type(error)(error.message, metadata=error.metadata, retry_after=error.retry_after)

    def durable_of(self, handles: Ints) -> Ints:
        """The steps that survive a crash, as far as is known: of a session that failed, as far as was known then."""
        durable: Ints = self.durable[handles]
        if self.durable_then:
            then = [self.durable_then.get(handle, DURABLE_FOREVER) for handle in handles.tolist()]
            durable = np.minimum(durable, np.array(then, np.int64))
        return np.minimum(durable, self.answered[handles])

    def group_number(self, group: Group) -> int:
        """The number that stands for a group in the column."""
        number = self._group_numbers.get(group)
        if number is None:
            number = self._group_numbers[group] = len(self.groups)
            self.groups.append(group)
        return number

    def acknowledgeable(self, handles: Ints) -> Ints:
        """Up to where the caller has the replies."""
        answered: Ints = self.answered[handles]
        if self.untaken:
            most = [self.untaken.get(handle, DURABLE_FOREVER) for handle in handles.tolist()]
            answered = np.minimum(answered, np.array(most, np.int64))
        return answered

    def live(self) -> Ints:
        """The handles that are or were open, in ascending order."""
        state = self.state[: self.size]
        return np.flatnonzero((state >= State.OPEN) & (state <= State.LOST))

    def _collect(self) -> None:
        limbo = np.array(self._limbo, np.int64)
        unused = self.refs[limbo] == 0
        self._free.extend(limbo[unused].tolist())
        self._limbo = limbo[~unused].tolist()

    def _grow(self, size: int) -> None:
        capacity = len(self.state)
        if size > capacity:
            more = max(size, 2 * capacity, 64) - capacity
            self.state = np.concatenate([self.state, np.zeros(more, np.uint8)])
            self.scratch = np.concatenate([self.scratch, np.zeros(more, np.int64)])
            for name in self._COLUMNS:
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more, np.int64)]))
        self.size = size
