"""Unary predictions: the usual one, a call of a model whose rows lie one behind the other, is taken the quick way.

Whatever is not as usual is left to inference.py, which also says what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from statestream.contract.signature import TensorSpec, numpy_dtype
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.caller import Caller
from statestream_server.edges.grpc.chain import Direct
from statestream_server.edges.grpc.patterns import Port
from statestream_server.edges.grpc.singles import packed_bytes
from statestream_server.models.model import Model
from statestream_server.models.model import Predictor as Graph
from statestream_server.server import Server

_LONGEST_NAME: Final = 256
"""Characters of a model's name at most; of more others see whether that is too much."""
_MOST_BYTES: Final = 1 << 20
"""Bytes of an answer that is kept until the next one takes its place."""


class _Known(NamedTuple):
    """What is known of a model: a row of its inputs on the wire, None where that varies; what answers a call."""

    inputs: tuple[Port, ...] | None
    size: int
    answer_size: int
    reply: _Reply


class Predicting:
    """The usual unary predictions."""

    def __init__(self, server: Server) -> None:
        """Predictions of the models of a server."""
        self._predictor = server.predictor
        self._gathering = server.gathering
        self._most_bytes = min(_MOST_BYTES, server.settings.limits.max_answer_bytes)
        self._known = WeakKeyDictionary[Graph, _Known]()

    def take(self, request: Any, caller: Caller, call: Direct) -> bool:
        """Takes a call, which hears what became of it; False where others must look at it.

        Raises:
            ModelNotFound: The model is not served.
            Unsupported: It has memory.
        """
        if type(request) is not pb.PredictRequest or request.outputs or len(request.model) > _LONGEST_NAME:
            return False
        model, tensors = self._predictor.model(request.model, request.version), request.inputs
        assert model.graph is not None
        known = self._known.get(model.graph) or self._learn(model, model.graph)
        shape = tensors[0].shape if tensors else ()
        rows = shape[0] if shape else 0
        if known.inputs is None or rows < 1 or rows * known.answer_size > self._most_bytes:
            return False
        inputs = packed_bytes(known.inputs, tensors, rows)
        if inputs is None:
            return False
        return self._gathering.put(model, rows, inputs, rows * known.size, _Asker(call, known.reply))

    def _learn(self, model: Model, graph: Graph) -> _Known:
        inputs, outputs = model.signature.inputs, model.signature.outputs
        found = [_ports(specs) for specs in (inputs, outputs)]
        usual = all(
            spec.HasField("batch_axis") and not spec.batch_axis and min(spec.shape[1:], default=0) >= 0
            for spec in (*inputs, *outputs)
        )
        # Of rows without bytes a few bytes may ask for any number.
        usual = usual and all(port.nbytes for port in found[0])
        sizes = [sum(port.nbytes for port in ports) for ports in found]
        known = _Known(found[0] if usual else None, sum(sizes), sizes[1], _Reply(model.version, found[1]))
        self._known[graph] = known
        return known


class _Reply:
    """The message that answers a call of one model, used again for the next."""

    def __init__(self, version: int, ports: Sequence[Port]) -> None:
        """A reply with these outputs."""
        outputs = [Tensor(name=port.name, dtype=port.dtype, shape=(1, *port.shape)) for port in ports]
        self._message = pb.PredictResponse(version=version, outputs=outputs)
        self._outputs = list(self._message.outputs)
        self._rows = 1

    def fill(self, rows: int, outputs: Sequence[bytes]) -> pb.PredictResponse:
        """The message with these values; they stand until the next call."""
        if rows != self._rows:
            self._rows = rows
            for tensor in self._outputs:
                tensor.shape[0] = rows
        for tensor, data in zip(self._outputs, outputs, strict=True):
            tensor.data = data
        return self._message


class _Asker:
    """Hears what became of one call."""

    __slots__ = ("_call", "_reply")

    def __init__(self, call: Direct, reply: _Reply) -> None:
        self._call = call
        self._reply = reply

    @property
    def over(self) -> bool:
        return self._call.over

    def ran(self, rows: int, outputs: Sequence[bytes]) -> None:
        if not self._call.over:
            self._call.answer(self._reply.fill(rows, outputs))

    def refused(self, error: Exception) -> None:
        self._call.fail(error)


def _ports(specs: Iterable[TensorSpec]) -> tuple[Port, ...]:
    """What a row of inputs or outputs looks like on the wire; nothing is free in it."""
    rows = [(spec, tuple(max(size, 0) for size in spec.shape[1:])) for spec in specs]
    return tuple(
        Port(spec.name, spec.dtype, shape, numpy_dtype(spec.dtype).itemsize * math.prod(shape)) for spec, shape in rows
    )
