"""Single chunks: the frame that comes most often, one well-formed chunk in order, is taken and answered the quick way.

Whatever is not as usual is left to chunk_frames.py, which also says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import TensorSpec, step_shape
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.arrays import Array
from statestream_server.edges.grpc import answers
from statestream_server.edges.grpc.answers import Results
from statestream_server.edges.grpc.handles import Handles
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.table import Table
from statestream_server.server import Server
from statestream_server.sessions.admission.accounts import OVERHEAD, Account, Window
from statestream_server.shapes import step_bytes

_REPLY_BYTES: Final = 128
"""About what a reply has beside its outputs."""


class Port(NamedTuple):
    """What one step of an input or output looks like on the wire; -1 in its shape is any length."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class _Known(NamedTuple):
    """What a stream knows of a model.

    Attributes:
        inputs: What one step looks like on the wire.
        outputs: The outputs of the signature.
        reply: What answers a chunk.
        each: The bytes of a step with its answer.
        window: The stream's.
    """

    inputs: tuple[Port, ...]
    outputs: Sequence[TensorSpec]
    reply: SingleReply
    each: int
    window: Window


class Singles:
    """The single chunks of one stream."""

    def __init__(self, server: Server, handles: Handles, outbox: Outbox, account: Account) -> None:
        """Chunks of the sessions of `handles`, answered through `outbox`; `account` has what is under way."""
        self._coalescer = server.coalescer
        self._most_steps = server.settings.limits.max_chunk_steps
        self._handles = handles
        self._outbox = outbox
        self._account = account
        self._models: dict[int, _Known] = {}

    def take(self, request: pb.StreamRequest, last: int) -> bool:
        """Takes the frame behind frame `last` where it is a chunk as usual; False where others must look at it."""
        if request.frame <= last or not request.HasField("chunk"):
            return False
        chunk = request.chunk
        handles, positions, acked, steps = chunk.handles, chunk.positions, chunk.acked_positions, chunk.steps
        if len(handles) != 4 or len(positions) != 8 or len(acked) not in (0, 8) or not 1 <= steps <= self._most_steps:
            return False
        if chunk.lengths or chunk.marks or chunk.cursors or chunk.score:
            return False
        found = self._handles.one(int.from_bytes(handles, "little"))
        if found is None:
            return False
        table, row, binding = found
        known = self._models.get(id(table)) or self._learn(table)
        inputs, start = packed_bytes(known.inputs, chunk.inputs, steps), int.from_bytes(positions, "little")
        if inputs is None or table.claiming.item(row) or start != table.queued.item(row):
            return False
        cost, window = OVERHEAD + steps * known.each, known.window
        if window.held and window.held + cost > window.most:
            return False
        single = _Single(
            row, binding, start, int.from_bytes(acked, "little"), steps, inputs,
            self._outbox, self._account, known, cost, request.frame, handles, positions,
        )  # fmt: skip
        if not self._coalescer.put(table, single):
            return False
        self._account.take(cost, window)
        return True

    def window(self, table: Table) -> Window:
        """The stream's window of a table's model."""
        return (self._models.get(id(table)) or self._learn(table)).window

    def forget(self, table: Table) -> None:
        """Keeps nothing of a table that is unloaded."""
        self._models.pop(id(table), None)

    def _learn(self, table: Table) -> _Known:
        inputs, outputs = table.model.signature.inputs, table.model.signature.outputs
        each = table.input_bytes + table.output_bytes
        known = _Known(ports(inputs), outputs, SingleReply(ports(outputs)), each, self._account.window())
        self._models[id(table)] = known
        return known


@dataclass(slots=True)
class _Single:
    """One chunk; takes its reply."""

    row: int
    binding: int
    start: int
    acked: int
    steps: int
    inputs: Sequence[bytes]
    outbox: Outbox
    account: Account
    known: _Known
    cost: int
    frame: int
    handle: bytes
    position: bytes

    def result(self, durable: int, outputs: Sequence[bytes]) -> None:
        size = _REPLY_BYTES + sum(map(len, outputs))
        fill = partial(self.known.reply.fill, self.frame, self.handle, self.position, self.steps, durable, outputs)
        self.outbox.put_later(fill, size, self.known.window, self.cost)

    def large(self, durable: int, lengths: Lengths, outputs: Sequence[Array]) -> None:
        handle, start = np.frombuffer(self.handle, "<u4"), np.frombuffer(self.position, "<u8")
        column = np.asarray([durable], np.uint64)
        found = Results(self.frame, self.known.outputs, handle, start, column, lengths, outputs)
        answers.put(self.outbox, found, self.known.window, self.cost)

    def refused(self, error: errors.StatestreamError) -> None:
        self.account.give(self.cost, self.known.window)
        handle, start = np.frombuffer(self.handle, "<u4"), np.frombuffer(self.position, "<u8")
        self.outbox.refuse(self.frame, handle, start, error)

    def overtaken(self) -> None:
        self.account.give(self.cost, self.known.window)


class SingleReply:
    """The message that answers a frame with one chunk of one model, used again for the next."""

    def __init__(self, ports: Sequence[Port]) -> None:
        """A reply with these outputs."""
        self._message = pb.StreamResponse(
            result=pb.ResultFrame(
                steps=1, outputs=[Tensor(name=p.name, dtype=p.dtype, shape=(1, *p.shape)) for p in ports]
            )
        )
        self._result = self._message.result
        self._outputs = list(self._result.outputs)

    def fill(
        self, frame: int, handle: bytes, position: bytes, steps: int, durable: int, outputs: Sequence[bytes]
    ) -> pb.StreamResponse:
        """The message with these values; they stand until the next call."""
        result = self._result
        self._message.frame = frame
        result.handles, result.positions = handle, position
        result.durable_positions = durable.to_bytes(8, "little")
        if result.steps != steps:
            result.steps = steps
            for tensor in self._outputs:
                tensor.shape[0] = steps
        for tensor, data in zip(self._outputs, outputs, strict=True):
            tensor.data = data
        return self._message


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
