"""Unary steps: the usual one, a chunk of a session that is here, is taken and answered the quick way.

Whatever is not as usual is left to inference.py, which also says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.caller import Caller
from statestream_server.edges.grpc.chain import Direct
from statestream_server.edges.grpc.patterns import Port
from statestream_server.edges.grpc.singles import packed_bytes, ports
from statestream_server.engine import digests
from statestream_server.engine.table import Table
from statestream_server.server import Server
from statestream_server.sessions.express import Applied
from statestream_server.stores.base import Key

_LONGEST_NAME: Final = 256
"""Bytes of a request id at most; of more others see whether that is too much."""
_MODES: Final = frozenset({pb.OPEN_MODE_UNSPECIFIED, pb.OPEN_MODE_EITHER, pb.OPEN_MODE_RESUME})


class _Known(NamedTuple):
    """What is known of a table: what one step looks like on the wire, None where that varies; what answers it."""

    inputs: tuple[Port, ...] | None
    reply: _Reply


class Steps:
    """The usual unary steps."""

    def __init__(self, server: Server) -> None:
        """Steps of the sessions of a server."""
        self._express, self._sessions, self._coming = server.express, server.sessions, server.coming
        self._most_steps = server.settings.limits.max_chunk_steps
        self._known = WeakKeyDictionary[Table, _Known]()

    def take(self, request: Any, caller: Caller, call: Direct) -> bool:
        """Takes a call, which hears what became of it; False where others must look at it.

        Raises:
            ModelNotFound: The model is not served.
            Overloaded: The session is not here, and would wait too long until it is.
        """
        if type(request) is not pb.StepRequest or request.mark or request.score or request.mode not in _MODES:
            return False
        name, tensors = request.request_id, request.inputs
        if len(name) > _LONGEST_NAME or request.cursor or not tensors:
            return False
        key = Key(caller.tenant, request.model, request.session_id)
        found = self._express.find(key, request.version)
        if found is None:
            if not self._sessions.find(key):
                self._coming.check(caller.tenant)  # Under too much load most calls of new sessions end here.
            return False
        table, row = found
        known = self._known.get(table) or self._learn(table)
        shape = tensors[0].shape
        steps = shape[0] if shape else 0
        if known.inputs is None or not 1 <= steps <= self._most_steps:
            return False
        inputs = packed_bytes(known.inputs, tensors, steps)
        if inputs is None:
            return False
        return self._express.put(
            table, row, steps, inputs, _Asker(call, known.reply),
            position=request.position if request.HasField("position") else None,
            acked=request.acked_position, request=digests.of_text(name) if name else 0,
        )  # fmt: skip

    def _learn(self, table: Table) -> _Known:
        signature = table.model.signature
        found = [ports(signature.inputs), ports(signature.outputs)]
        usual = all(min(port.shape, default=0) >= 0 for some in found for port in some)
        known = self._known[table] = _Known(found[0] if usual else None, _Reply(table.model.version, found[1]))
        return known


class _Reply:
    """The message that answers a step of one model, used again for the next."""

    def __init__(self, version: int, ports: Sequence[Port]) -> None:
        """A reply with these outputs."""
        outputs = [
            Tensor(name=port.name, dtype=port.dtype, shape=(1, *(max(n, 0) for n in port.shape))) for port in ports
        ]
        self._message = pb.StepResponse(version=version, outputs=outputs)
        self._outputs = list(self._message.outputs)
        self._steps = 1

    def fill(self, step: Applied) -> pb.StepResponse:
        """The message with these values; they stand until the next call."""
        message = self._message
        message.position, message.durable_position, message.epoch = step.position, step.durable, step.epoch
        if step.steps != self._steps:
            self._steps = step.steps
            for tensor in self._outputs:
                tensor.shape[0] = step.steps
        for tensor, data in zip(self._outputs, step.outputs, strict=True):
            tensor.data = data
        return message


class _Asker:
    """Hears what became of one call's chunk."""

    __slots__ = ("_call", "_reply")

    def __init__(self, call: Direct, reply: _Reply) -> None:
        self._call = call
        self._reply = reply

    def applied(self, step: Applied) -> None:
        if not self._call.over:
            self._call.answer(self._reply.fill(step))

    def refused(self, error: errors.StatestreamError) -> None:
        self._call.fail(error)
