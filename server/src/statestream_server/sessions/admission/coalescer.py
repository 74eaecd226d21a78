"""The coalescer: chunks of single sessions that arrive before the engine runs its next batch go to the intake as one.

The rules of intake.py cost the same for one chunk as for hundreds. A thousand streams with a session each
send a thousand frames; those that are ready at the same moment are laid out as columns here first.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add
from typing import Final, NamedTuple, Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints, counting, same
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.table import Table
from statestream_server.sessions.admission.intake import Chunks, Intake, Refusal, error_at

LARGE: Final = 1 << 20
"""Where one of the chunks has outputs of more bytes than that, they are not copied as bytes before they are sent."""


class Sender(Protocol):
    """Who sent one chunk and gets its reply."""

    def result(self, durable: int, outputs: Sequence[bytes]) -> None:
        """The chunk was applied: the durable position, and the bytes [steps, ...one step] of every output."""

    def large(self, durable: int, lengths: Lengths, outputs: Sequence[Array]) -> None:
        """The same of a chunk with large outputs, as views of arrays that nobody changes."""

    def refused(self, error: errors.StatestreamError) -> None:
        """The chunk was not applied."""

    def overtaken(self) -> None:
        """The chunk was applied and gets no reply; see Receiver."""


class Arrival(NamedTuple):
    """One chunk.

    Attributes:
        row: The session's row.
        binding: The claim under which the sender has it.
        start: The position at which the chunk starts.
        acked: The position up to which the caller has the replies.
        steps: Its steps.
        inputs: The bytes of every input, checked against the signature.
        sender: Who sent it.
    """

    row: int
    binding: int
    start: int
    acked: int
    steps: int
    inputs: Sequence[bytes]
    sender: Sender


class Coalescer:
    """What arrived since the last batch began, by table."""

    def __init__(self, intake: Intake, engine: Engine) -> None:
        """Nothing arrived. The engine asks for what came before it chooses a batch."""
        self._intake = intake
        self._engine = engine
        engine.feeds.append(self.empty)
        self._arrivals: dict[int, tuple[Table, dict[int, Arrival]]] = {}

    def put(self, table: Table, arrival: Arrival) -> None:
        """Takes a chunk of a session that has none here; it goes on with the next turn of the engine."""
        self._engine.wake(1)
        _, rows = self._arrivals.setdefault(id(table), (table, {}))
        rows[arrival.row] = arrival

    def holds(self, table: Table, row: int) -> bool:
        """Whether a chunk of this session lies here already; then `empty` comes before the next."""
        return id(table) in self._arrivals and row in self._arrivals[id(table)][1]

    def empty(self) -> None:
        """Passes on what arrived. Call it before anything that must come after."""
        arrived, self._arrivals = self._arrivals, {}
        for table, rows in arrived.values():
            self._accept(table, tuple(rows.values()))

    def _accept(self, table: Table, arrivals: Sequence[Arrival]) -> None:
        rows, bindings, starts, acked, steps, inputs, senders = zip(*arrivals, strict=True)
        column = np.array(rows, np.int64)
        if not same(table.binding[column], np.array(bindings, np.int64)):
            here = table.binding[column] == bindings
            moved = errors.SessionMoved("the session left this stream before the chunk ran")
            for place in np.flatnonzero(~here).tolist():
                senders[place].refused(moved)
            arrivals = [arrivals[place] for place in np.flatnonzero(here).tolist()]
            if arrivals:
                self._accept(table, arrivals)
            return
        uniform = steps.count(steps[0]) == len(steps)
        chunks = Chunks(
            table,
            column,
            counting(len(rows)),
            np.array(starts, np.uint64),
            np.array(acked, np.uint64),
            Lengths(len(steps), steps[0]) if uniform else Lengths.of(np.array(steps, np.int64)),
            [
                np.frombuffer(b"".join(parts), dtype).reshape(-1, *shape)
                for (dtype, shape), parts in zip(table.inputs, zip(*inputs, strict=True), strict=True)
            ],
            ends=np.array(list(map(add, starts, steps)), np.uint64),
        )
        self._intake.accept(chunks, _Turn(senders))


class _Turn:
    """Hands replies to those who sent the chunks; the handles of its chunks are places in this list."""

    def __init__(self, senders: Sequence[Sender]) -> None:
        self._senders = senders

    def results(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        offset, lengths = 0, chunks.lengths
        if chunks.table.output_bytes * (lengths.each or int(lengths.column.max())) > LARGE:
            self._large(chunks, lengths, outputs)
            return
        durable = chunks.table.durable[chunks.rows].tolist()
        columns = zip(chunks.handles.tolist(), lengths.tolist(), durable, strict=True)
        # Cutting bytes costs a tenth of what cutting arrays costs.
        data = [(array.tobytes(), array.nbytes // lengths.total) for array in outputs]
        for place, steps, position in columns:
            end = offset + steps
            cut = [whole[offset * width : end * width] for whole, width in data]
            self._senders[place].result(position, cut)
            offset = end

    def repeated(self, chunks: Chunks, entries: Ints) -> None:
        self._large(chunks, *chunks.table.replies.outputs(entries))

    def _large(self, chunks: Chunks, lengths: Lengths, outputs: Sequence[Array]) -> None:
        """Copies nothing: what is written when its turn comes need not be bytes now."""
        durable = chunks.table.durable[chunks.rows].tolist()
        for place, (sender, position) in enumerate(zip(chunks.handles.tolist(), durable, strict=True)):
            one = np.asarray([place])
            self._senders[sender].large(position, lengths.take(one), lengths.pack(outputs, one))

    def refused(self, chunks: Chunks, refusal: Refusal) -> None:
        for place, sender in enumerate(chunks.handles.tolist()):
            self._senders[sender].refused(error_at(refusal, place))

    def overtaken(self, chunks: Chunks) -> None:
        for sender in chunks.handles.tolist():
            self._senders[sender].overtaken()
