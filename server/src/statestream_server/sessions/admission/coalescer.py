"""The coalescer: chunks of single sessions that arrive before the engine runs its next batch go to the intake as one.

The rules of intake.py cost the same for one chunk as for hundreds. A thousand streams with a session each
send a thousand frames; those that are ready at the same moment are laid out as columns here first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add, attrgetter
from typing import Final, Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints, counting, same
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths, alike
from statestream_server.engine.table import Table
from statestream_server.sessions.admission.chunks import Chunks, Refusal, error_at
from statestream_server.sessions.admission.intake import Intake

LARGE: Final = 1 << 20
"""Where one of the chunks has outputs of more bytes than that, they are not copied as bytes before they are sent."""


class Single(Protocol):
    """One chunk; who sent it gets its reply by one of these methods.

    Attributes:
        row: The session's row.
        binding: The claim under which the sender has it.
        start: The position at which the chunk starts.
        acked: The position up to which the caller has the replies.
        steps: Its steps.
        inputs: The bytes of every input, checked against the signature.
    """

    row: int
    binding: int
    start: int
    acked: int
    steps: int
    inputs: Sequence[bytes]

    def result(self, durable: int, outputs: Sequence[bytes]) -> None:
        """The chunk was applied: the durable position, and the bytes [steps, ...one step] of every output."""

    def large(self, durable: int, lengths: Lengths, outputs: Sequence[Array]) -> None:
        """The same of a chunk with large outputs, as views of arrays that nobody changes."""

    def refused(self, error: errors.StatestreamError) -> None:
        """The chunk was not applied."""

    def overtaken(self) -> None:
        """The chunk was applied and gets no reply; see Receiver."""


_COLUMNS: Final = attrgetter("row", "binding", "start", "acked", "steps", "inputs")


class Coalescer:
    """What arrived since the last batch began, by table."""

    def __init__(self, intake: Intake, engine: Engine) -> None:
        """Nothing arrived. The engine asks for what came before it chooses a batch."""
        self._intake = intake
        self._engine = engine
        engine.feeds.append(self.empty)
        self._arrived: dict[int, tuple[Table, dict[int, Single]]] = {}

    def put(self, table: Table, single: Single) -> bool:
        """Takes a chunk, which goes on with the next turn of the engine.

        Returns:
            False where one of its session lies here already: then `empty` comes before this one.
        """
        _, singles = self._arrived.setdefault(id(table), (table, {}))
        if single.row in singles:
            return False
        singles[single.row] = single
        self._engine.wake(1)
        return True

    def empty(self) -> None:
        """Passes on what arrived. Call it before anything that must come after."""
        arrived, self._arrived = self._arrived, {}
        for table, singles in arrived.values():
            self._pass_on(table, tuple(singles.values()))

    def _pass_on(self, table: Table, singles: Sequence[Single]) -> None:
        numbers, bindings, starts, acked, steps, inputs = zip(*map(_COLUMNS, singles), strict=True)
        rows = np.array(numbers, np.int64)
        if not same(table.binding[rows], np.array(bindings, np.int64)):
            here = table.binding[rows] == bindings
            moved = errors.SessionMoved("the session left this stream before the chunk ran")
            for place in np.flatnonzero(~here).tolist():
                singles[place].refused(moved)
            singles = [singles[place] for place in np.flatnonzero(here).tolist()]
            if singles:
                self._pass_on(table, singles)
            return
        uniform = steps.count(steps[0]) == len(steps)
        self._intake.accept(
            Chunks(
                rows,
                alike(len(steps), steps[0]) if uniform else Lengths.of(np.array(steps, np.int64)),
                [
                    np.frombuffer(b"".join(parts), dtype).reshape(-1, *shape)
                    for (dtype, shape), parts in zip(table.inputs, zip(*inputs, strict=True), strict=True)
                ],
                table=table,
                handles=counting(len(rows)),
                starts=np.array(starts, np.uint64),
                ends=np.array(list(map(add, starts, steps)), np.uint64),
                acked=np.array(acked, np.uint64),
                receiver=_Senders(singles),
            )
        )


@dataclass(slots=True)
class _Senders:
    """Hands replies to those who sent the chunks; the handles of its chunks are places in this list."""

    singles: Sequence[Single]

    def results(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        offset, lengths = 0, chunks.lengths
        if chunks.table.output_bytes * (lengths.each or int(lengths.column.max())) > LARGE:
            self._large(chunks, lengths, outputs)
            return
        durable = chunks.table.durable[chunks.rows].tolist()
        steps_of = [lengths.each] * lengths.count if lengths.each else lengths.column.tolist()
        # Cutting bytes costs a tenth of what cutting arrays costs.
        data = [(array.tobytes(), array.nbytes // lengths.total) for array in outputs]
        for place, steps, position in zip(chunks.handles.tolist(), steps_of, durable, strict=True):
            end = offset + steps
            cut = [whole[offset * width : end * width] for whole, width in data]
            self.singles[place].result(position, cut)
            offset = end

    def repeated(self, chunks: Chunks, entries: Ints) -> None:
        self._large(chunks, *chunks.table.replies.outputs(entries))

    def _large(self, chunks: Chunks, lengths: Lengths, outputs: Sequence[Array]) -> None:
        """Copies nothing: what is written when its turn comes need not be bytes now."""
        durable = chunks.table.durable[chunks.rows].tolist()
        for place, (sender, position) in enumerate(zip(chunks.handles.tolist(), durable, strict=True)):
            one = np.asarray([place])
            self.singles[sender].large(position, lengths.take(one), lengths.pack(outputs, one))

    def refused(self, chunks: Chunks, refusal: Refusal) -> None:
        for place, sender in enumerate(chunks.handles.tolist()):
            self.singles[sender].refused(error_at(refusal, place))

    def overtaken(self, chunks: Chunks) -> None:
        for sender in chunks.handles.tolist():
            self.singles[sender].overtaken()
