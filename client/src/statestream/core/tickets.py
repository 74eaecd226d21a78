"""What a caller holds while an operation is under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np

from statestream.contract.errors import BadTensor, StatestreamError
from statestream.contract.tensors import Array, Ints, Mask
from statestream.core.feeds import Feed

Outputs: TypeAlias = dict[str, Array]
"""Packed outputs by name: [S, ...one step], S the steps of all chunks."""

Value: TypeAlias = Array | Outputs
"""What a step returns: the array where the model has one output, else arrays by name."""


def value_of(outputs: Outputs) -> Value:
    """What a caller gets of outputs by name."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


ANSWER_BYTES = 4 << 20
"""Chunks and frames are cut so that their outputs stay below about this."""

OVERHEAD = 512
"""Bytes that a chunk, or a block of chunks, costs beyond its inputs, about."""


@dataclass(frozen=True, eq=False, slots=True)
class Lane:
    """Chunks that may share a frame: one model version, the same inputs (dtypes by name), the same shape of a step.

    A step has `step_bytes` of inputs and `answer_bytes` of outputs. A lane of marks has their kind in `mark`; they have
    no inputs, and count as one step. One whose chunks or marks carry cursors says so, and one whose chunks are scored.
    """

    model: str
    version: int
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    step_bytes: int
    answer_bytes: int = 0
    mark: int = 0
    cursors: bool = False
    scored: bool = False

    def with_cursors(self) -> Lane:
        """The same for chunks that carry cursors."""
        return replace(self, cursors=True)

    def with_scores(self) -> Lane:
        """The same for chunks that are to be scored."""
        return replace(self, scored=True)

    def answer_steps(self, most: int) -> int:
        """How many steps have outputs of about `most` bytes, one at least."""
        return max(1, most // max(1, self.answer_bytes))

    def too_large(self, most: int) -> BadTensor:
        """What a caller is told whose steps do not fit a message of `most` bytes."""
        return BadTensor(
            f"one step of model {self.model!r} has {self.step_bytes:,} bytes; this server takes at most {most:,}",
            metadata={"field": self.names[0]},
        )


class Waiter(Protocol):
    """What a caller waits on. An asyncio.Future is one."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, result: None, /) -> None:
        """Wakes the caller."""


class Callback:
    """A waiter that is a function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def done(self) -> bool:
        """It can always be called."""
        return False

    def set_result(self, _result: None) -> None:
        """Calls it."""
        self._function()


class Ticket:
    """One operation: pending, then done with `value` or `error`.

    Its `waiter` is woken once, when it is done, from inside the core; what it does must not call the core.
    """

    __slots__ = ("done", "error", "value", "waiter")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: StatestreamError | None = None
        self.waiter: Waiter | None = None

    def finish(self, value: object = None, error: StatestreamError | None = None) -> None:
        """Makes the ticket done; a second call changes nothing."""
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class StepTicket(Ticket):
    """One chunk of one session, or a mark; as `sinks.Sink`, where its outputs go.

    Attributes:
        inputs: The bytes of every input, in the lane's order.
        single: The caller sent one step without a time axis and wants one back.
        cursor: What the caller says of where it is, in lanes with cursors; b"" for nothing.
        framed: Whether a block has it.
    """

    __slots__ = ("cursor", "framed", "handle", "inputs", "lane", "nbytes", "single", "start", "steps")

    def __init__(
        self, lane: Lane, handle: int, inputs: tuple[bytes, ...], steps: int, single: bool, cursor: bytes = b""
    ) -> None:
        # Not through the base class, because this happens at every step.
        self.done = False
        self.value: Any = None
        self.error: StatestreamError | None = None
        self.waiter: Waiter | None = None
        self.lane = lane
        self.handle = handle
        self.inputs = inputs
        self.steps = steps
        self.single = single
        self.cursor = cursor
        self.start = -1
        self.framed = False
        self.nbytes = OVERHEAD + lane.step_bytes * steps

    def take(self, _rows: Ints) -> StepTicket:
        """As the sink of a block of one chunk: itself."""
        return self

    def deliver(self, _rows: slice | Ints, outputs: Outputs, _lengths: Ints | int) -> None:
        """Takes the outputs of its chunk; they belong to this frame."""
        if not outputs:  # A mark.
            self.finish()
        elif len(outputs) == 1:
            (packed,) = outputs.values()
            self.finish(packed[0, ...] if self.single else packed)
        else:
            self.finish({name: packed[0, ...] for name, packed in outputs.items()} if self.single else outputs)

    def fail(self, _row: int, error: StatestreamError) -> None:
        """Takes why there are none."""
        self.finish(error=error)


class PartsTicket(Ticket):
    """A sequence that was cut into several chunks; done when they are, with their outputs joined."""

    __slots__ = ("_left", "parts")

    def __init__(self, parts: Sequence[StepTicket]) -> None:
        super().__init__()
        self.parts = list(parts)
        self._left = len(self.parts)
        for part in self.parts:
            part.waiter = Callback(self._count)

    def _count(self) -> None:
        self._left -= 1
        if self._left:
            return
        error = next((part.error for part in self.parts if part.error is not None), None)
        if error is not None:
            self.finish(error=error)
        elif isinstance(self.parts[0].value, dict):
            names = list(self.parts[0].value)
            self.finish({name: np.concatenate([part.value[name] for part in self.parts]) for name in names})
        else:
            self.finish(np.concatenate([part.value for part in self.parts]))


class PoolTicket(Ticket):
    """Chunks of many sessions, or marks, submitted together.

    Its value is {output: [N, T, ...]}; rows that failed, and steps past a row's length, stay zero.

    Attributes:
        handles: [N] the sessions, each at most once.
        inputs: The bytes of every input, [N, T, ...].
        lengths: [N] the steps of every row, or one number where all have the same.
        steps: T.
        feed: What it is a step of, where it is one of several that do not wait for each other.
        cursors: [N] what the caller says of where it is, in lanes with cursors, behind all steps of a row.
        errors: What became of the rows that failed, by row.
    """

    __slots__ = ("cursors", "errors", "feed", "handles", "inputs", "lane", "left", "lengths", "nbytes", "steps")

    def __init__(
        self,
        lane: Lane,
        handles: Ints,
        inputs: tuple[bytes, ...],
        lengths: Ints | int,
        steps: int,
        feed: Feed | None = None,
        cursors: Sequence[bytes] = (),
    ) -> None:
        super().__init__()
        self.cursors = cursors
        self.feed = feed
        self.lane = lane
        self.handles = handles
        self.inputs = inputs
        self.lengths = lengths
        self.steps = steps
        self.nbytes = sum(map(len, inputs))
        self.left = 0
        self.errors: dict[int, StatestreamError] = {}
        self.value: dict[str, Array] = {}

    def deliver(self, rows: slice | Ints, offset: int, outputs: Outputs, lengths: Ints | int) -> None:
        """Takes packed outputs of some rows, for the steps from `offset` on."""
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        if isinstance(rows, slice) and count == len(self.handles) and lengths == self.steps:
            # All of it at once and in order: the frame's arrays are the answer.
            self.value = {name: packed.reshape(count, -1, *packed.shape[1:]) for name, packed in outputs.items()}
            self._count(count)
            return
        for name, packed in outputs.items():
            tail = packed.shape[1:]
            target = self.value.get(name)
            if target is None:
                target = self.value[name] = np.zeros((len(self.handles), self.steps, *tail), packed.dtype)
            if isinstance(lengths, int):
                target[rows, offset : offset + lengths] = packed.reshape(count, lengths, *tail)
            else:
                steps = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                places = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
                target[np.repeat(places, lengths), offset + steps] = packed
        self._count(count)

    def fail(self, row: int, error: StatestreamError) -> None:
        """Marks a chunk of a row as failed; the first error of a row stays."""
        self.leave_out(row, error)
        self._count(1)

    def leave_out(self, row: int, error: StatestreamError) -> None:
        """Marks a row as failed, none of whose chunks is counted."""
        self.errors.setdefault(row, error)
        if self.feed is not None:
            self.feed.fail(self.handles.item(row), error)

    def _count(self, chunks: int) -> None:
        self.left -= chunks
        if self.left == 0:
            self.finish(self.value)


class OpenTicket(Ticket):
    """Sessions being opened. Done when each is open or refused.

    Attributes:
        handles: [N] the sessions.
        created: [N] whether it was created.
        versions: [N] the version to which it is pinned.
        errors: What became of the refused, by row.
        settled: [N] whether it is open or refused.
        dropped: Whether whoever asked has gone: see `Sharing.drop`.
        replies: By row, the replies that came again: where each chunk started, and its outputs.
    """

    __slots__ = ("created", "dropped", "errors", "handles", "left", "replies", "settled", "versions")

    def __init__(self, handles: Ints) -> None:
        super().__init__()
        self.handles = handles
        self.created = np.zeros(len(handles), np.bool_)
        self.versions = np.zeros(len(handles), np.int64)
        self.errors: dict[int, StatestreamError] = {}
        self.replies: dict[int, list[tuple[int, Outputs]]] = {}
        self.settled = np.zeros(len(handles), np.bool_)
        self.dropped = False
        self.left = len(handles)

    @property
    def askers(self) -> Sequence[OpenTicket]:
        """The tickets that callers hold: itself."""
        return (self,)

    def opened(self, rows: Ints, created: Mask, version: int) -> None:
        """Notes what is known of rows that are open."""
        self.created[rows] = created
        self.versions[rows] = version

    def refuse(self, row: int, error: StatestreamError) -> None:
        """Notes why a row is not open."""
        self.errors[row] = error

    def count(self, rows: Ints) -> None:
        """Accounts for rows that are open or refused."""
        self.settled[rows] = True
        self.left -= len(rows)
        if self.left == 0:
            self.finish()


class JoinedTicket(OpenTicket):
    """Sessions that several callers open in one frame, each of them one row of another ticket."""

    __slots__ = ("_members", "_rows")

    def __init__(self, handles: Ints, members: Sequence[OpenTicket], rows: Sequence[int]) -> None:
        super().__init__(handles)
        self._members = members
        self._rows = [np.array([row]) for row in rows]

    @property
    def askers(self) -> Sequence[OpenTicket]:
        """Theirs; one of them may be joined itself."""
        return [asker for member in self._members for asker in member.askers]

    def opened(self, rows: Ints, created: Mask, version: int) -> None:
        """Tells each caller of its row."""
        for row, new in zip(rows.tolist(), created.tolist(), strict=True):
            self._members[row].opened(self._rows[row], np.array([new]), version)

    def refuse(self, row: int, error: StatestreamError) -> None:
        """Tells one caller."""
        self._members[row].refuse(int(self._rows[row][0]), error)

    def count(self, rows: Ints) -> None:
        """Each caller goes on as soon as its own row is there."""
        for row in rows.tolist():
            self._members[row].count(self._rows[row])


class ControlTicket(Ticket):
    """A flush, a close, or a wait for what is under way.

    Attributes:
        errors: What went wrong, by handle.
    """

    __slots__ = ("errors", "left")

    def __init__(self, parts: int = 1) -> None:
        super().__init__()
        self.errors: dict[int, StatestreamError] = {}
        self.left = parts

    def part_done(self) -> None:
        """Accounts for one of the operations that it takes."""
        self.left -= 1
        if self.left == 0:
            self.finish()


def again(error: StatestreamError) -> StatestreamError:
    """A copy of an error, so that each caller raises one of its own."""
    return type(error)(error.message, metadata=error.metadata, retry_after=error.retry_after)
