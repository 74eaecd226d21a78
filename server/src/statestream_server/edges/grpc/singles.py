"""Single chunks: the frame that comes most often, one well-formed chunk in order, is taken and answered the quick way.

Whatever is not as usual is left to chunk_frames.py, which also says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import TensorSpec, step_shape
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.arrays import Array
from statestream_server.edges.grpc import answers, patterns
from statestream_server.edges.grpc.answers import Results
from statestream_server.edges.grpc.handles import Handles
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.edges.grpc.patterns import Port
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.table import Table
from statestream_server.server import Server
from statestream_server.sessions.admission.accounts import OVERHEAD, Account, Window
from statestream_server.shapes import step_bytes

_MOST_SEEN: Final = 64
"""Kinds of chunks that a stream keeps, and as many of each model."""


class _Known(NamedTuple):
    """What a stream knows of a model.

    Attributes:
        table: Its sessions.
        inputs, outputs: What one step looks like on the wire.
        usual: Whether nothing is free in it.
        specs: The outputs of the signature.
        each: The bytes of a step with its answer.
        window: The stream's.
        seen: What came, by steps and whether it had an acknowledged position.
    """

    table: Table
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    usual: bool
    specs: Sequence[TensorSpec]
    each: int
    window: Window
    seen: dict[tuple[int, bool], _Seen]


class _Seen(NamedTuple):
    """Chunks of one model with so many steps: how they are laid out and answered, and what one counts."""

    known: _Known
    steps: int
    chunk: patterns.Chunk
    reply: patterns.Reply
    cost: int


class Singles:
    """The single chunks of one stream."""

    def __init__(self, server: Server, handles: Handles, outbox: Outbox, account: Account) -> None:
        """Chunks of the sessions of `handles`, answered through `outbox`; `account` has what is under way."""
        self.outbox = outbox
        self.account = account
        self._coalescer = server.coalescer
        self._most_steps = server.settings.limits.max_chunk_steps
        self._handles = handles
        self._models: dict[int, _Known] = {}
        self._seen: dict[int, _Seen] = {}
        """What came so that the next is known by its bytes: by the length behind the number of the frame."""

    def take(self, data: bytes, last: int) -> int:
        """Takes a frame where it is a chunk as usual, behind frame `last`, and the like of it came before.

        Returns:
            Its number; 0 where nothing was done.
        """
        frame, at = patterns.number(data)
        seen = self._seen.get(len(data) - at)
        if seen is None or frame <= last:
            return 0
        pattern = seen.chunk
        parts = pattern.split(data, at)
        if parts[::2] != pattern.same:
            return 0
        acked, inputs = (parts[5], parts[7::2]) if pattern.acked else (0, parts[5::2])
        named = at + pattern.named
        taken = self._put(seen, parts[1], parts[3], acked, inputs, data[:at], data[named : named + patterns.NAMED])
        return frame if taken else 0

    def take_decoded(self, request: pb.StreamRequest, data: bytes, last: int) -> bool:
        """Takes a frame, of these bytes, where it is a chunk as usual, behind frame `last`; whether it was."""
        if request.frame <= last or not request.HasField("chunk"):
            return False
        chunk = request.chunk
        handles, positions, acked, steps = chunk.handles, chunk.positions, chunk.acked_positions, chunk.steps
        if len(handles) != 4 or len(positions) != 8 or len(acked) not in (0, 8) or not 1 <= steps <= self._most_steps:
            return False
        if chunk.lengths or chunk.marks or chunk.cursors or chunk.score:
            return False
        handle = int.from_bytes(handles, "little")
        found = self._handles.one(handle)
        if found is None:
            return False
        known = self._models.get(id(found[0])) or self._learn(found[0])
        inputs = packed_bytes(known.inputs, chunk.inputs, steps) if known.usual else None
        if inputs is None:
            return False
        seen = known.seen.get((steps, bool(acked))) or self._see(known, steps, acked=bool(acked))
        if len(data) <= patterns.LONGEST and seen.chunk.fits(data):
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen[seen.chunk.nbytes] = seen
        number, named = patterns.echo(request.frame, handles, positions)
        return self._put(
            seen, handle, int.from_bytes(positions, "little"), int.from_bytes(acked, "little"), inputs, number, named
        )

    def _put(
        self, seen: _Seen, handle: int, start: int, acked: int, inputs: Sequence[bytes], number: bytes, named: bytes
    ) -> bool:
        """Takes a chunk; `number` and `named` are repeated in the reply. False where it is not as usual after all."""
        known, steps, _, _, cost = seen
        table, window, found = known.table, known.window, self._handles.one(handle)
        if found is None or found[0] is not table:
            return False
        _, row, binding = found
        if table.claiming.item(row) or start != table.queued.item(row):
            return False
        if window.held and window.held + cost > window.most:
            return False
        single = _Single(row, binding, start, acked, steps, inputs, self, seen, number, named)
        if not self._coalescer.put(table, single):
            return False
        self.account.take(cost, window)
        return True

    def window(self, table: Table) -> Window:
        """The stream's window of a table's model."""
        return (self._models.get(id(table)) or self._learn(table)).window

    def forget(self, table: Table) -> None:
        """Keeps nothing of a table that is unloaded."""
        self._models.pop(id(table), None)
        self._seen = {length: seen for length, seen in self._seen.items() if seen.known.table is not table}

    def _learn(self, table: Table) -> _Known:
        inputs, outputs = table.model.signature.inputs, table.model.signature.outputs
        each = table.input_bytes + table.output_bytes
        found = ports(inputs), ports(outputs)
        usual = all(min(port.shape, default=0) >= 0 for some in found for port in some)
        known = _Known(table, *found, usual, outputs, each, self.account.window(), {})
        self._models[id(table)] = known
        return known

    def _see(self, known: _Known, steps: int, *, acked: bool) -> _Seen:
        if len(known.seen) >= _MOST_SEEN:
            known.seen.clear()
        chunk, reply = patterns.chunk(known.inputs, steps, acked=acked), patterns.reply(known.outputs, steps)
        seen = known.seen[steps, acked] = _Seen(known, steps, chunk, reply, OVERHEAD + steps * known.each)
        return seen


class _Single(NamedTuple):
    """One chunk; takes its reply."""

    row: int
    binding: int
    start: int
    acked: int
    steps: int
    inputs: Sequence[bytes]
    singles: Singles
    seen: _Seen
    number: bytes
    named: bytes

    def result(self, durable: int, outputs: Sequence[bytes], *, alone: bool = False) -> None:
        seen = self.seen
        begin, between, tensors = seen.reply
        parts = [self.number, begin, self.named, between, durable.to_bytes(8, "little")]
        for before, data in zip(tensors, outputs, strict=True):
            parts += (before, data)
        self.singles.outbox.put_bytes(b"".join(parts), seen.known.window, seen.cost, alone=alone)

    def large(self, durable: int, lengths: Lengths, outputs: Sequence[Array]) -> None:
        frame, handle, start = patterns.read_echo(self.number, self.named)
        column, known = np.asarray([durable], np.uint64), self.seen.known
        found = Results(frame, known.specs, handle, start, column, lengths, outputs)
        answers.put(self.singles.outbox, found, known.window, self.seen.cost)

    def refused(self, error: errors.StatestreamError) -> None:
        self.overtaken()
        self.singles.outbox.refuse(*patterns.read_echo(self.number, self.named), error)

    def overtaken(self) -> None:
        self.singles.account.give(self.seen.cost, self.seen.known.window)


def ports(specs: Sequence[TensorSpec]) -> tuple[Port, ...]:
    """What one step of inputs or outputs looks like on the wire."""
    return tuple(Port(spec.name, spec.dtype, step_shape(spec), step_bytes(spec)) for spec in specs)


def packed_bytes(ports: Sequence[Port], tensors: Sequence[Tensor], steps: int) -> list[bytes] | None:
    """The bytes of a chunk's inputs where they are as the signature says, in its order; else None.

    `wire.packed_inputs` takes what this does not, or says what is wrong.
    """
    if len(tensors) != len(ports):
        return None
    found = []
    for place, port in enumerate(ports):
        tensor = tensors[place]
        data = tensor.data
        if (
            tensor.name != port.name
            or tensor.dtype != port.dtype
            or len(data) != steps * port.nbytes
            or len(tensor.shape) != 1 + len(port.shape)
            or tensor.shape != [steps, *port.shape]
        ):
            return None
        found.append(data)
    return found
