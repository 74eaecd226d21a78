"""Senders of single chunks, and how replies to chunks in columns come back to each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints
from statestream_server.engine.lengths import Lengths
from statestream_server.sessions.admission.chunks import Chunks, Refusal, error_at

LARGE: Final = 1 << 20
"""Where a single chunk has outputs of more bytes than that, they are not copied as bytes before they are sent."""


class Single(Protocol):
    """One chunk; who sent it gets its reply by one of these methods."""

    @property
    def row(self) -> int:
        """The session's row."""

    @property
    def binding(self) -> int:
        """The claim under which the sender has it."""

    @property
    def start(self) -> int:
        """The position at which the chunk starts."""

    @property
    def acked(self) -> int:
        """The position up to which the caller has the replies."""

    @property
    def steps(self) -> int:
        """Its steps."""

    @property
    def inputs(self) -> Sequence[bytes]:
        """The bytes of every input, checked against the signature."""

    def result(self, durable: int, outputs: Sequence[bytes], *, alone: bool = False) -> None:
        """The chunk was applied: the durable position, and the bytes [steps, ...one step] of every output.

        Where it ran `alone`, nobody else waits for the engine.
        """

    def large(self, durable: int, lengths: Lengths, outputs: Sequence[Array]) -> None:
        """The same of a chunk with large outputs, as views of arrays that nobody changes."""

    def refused(self, error: errors.StatestreamError) -> None:
        """The chunk was not applied."""

    def overtaken(self) -> None:
        """The chunk was applied and gets no reply; see Receiver."""


@dataclass(slots=True)
class Senders:
    """Hands replies to those who sent the chunks; the handles of its chunks are places in this list."""

    singles: Sequence[Single]

    def results(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        """Hands out the outputs of chunks that were applied."""
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
        """Hands out kept outputs again."""
        self._large(chunks, *chunks.table.replies.outputs(entries))

    def _large(self, chunks: Chunks, lengths: Lengths, outputs: Sequence[Array]) -> None:
        """Copies nothing: what is written when its turn comes need not be bytes now."""
        durable = chunks.table.durable[chunks.rows].tolist()
        for place, (sender, position) in enumerate(zip(chunks.handles.tolist(), durable, strict=True)):
            one = np.asarray([place])
            self.singles[sender].large(position, lengths.take(one), lengths.pack(outputs, one))

    def refused(self, chunks: Chunks, refusal: Refusal) -> None:
        """Says of chunks why they were not applied."""
        for place, sender in enumerate(chunks.handles.tolist()):
            self.singles[sender].refused(error_at(refusal, place))

    def overtaken(self, chunks: Chunks) -> None:
        """Says of chunks that they get no reply."""
        for sender in chunks.handles.tolist():
            self.singles[sender].overtaken()
