"""Sequences: the usual request, the next steps of a sequence that is here, is taken and answered the quick way.

Whatever is not as usual is left to inference.py, which also says what is wrong with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from statestream.contract import errors
from statestream.contract.signature import TensorSpec, step_shape
from statestream.contract.specs import batch_axis_of, time_axis_of
from statestream_server.edges.oip import datatypes, parameters
from statestream_server.edges.oip import oip_pb2 as pb
from statestream_server.edges.oip.inference import Asked, Inference
from statestream_server.engine import digests
from statestream_server.engine.table import Table
from statestream_server.server import Server
from statestream_server.sessions.express import Applied
from statestream_server.shapes import step_bytes
from statestream_server.stores.base import Key

_LONGEST_NAME: Final = 256
"""Bytes of a request's id at most; of more others see whether that is too much."""
_MOST_REPLIES: Final = 16
"""Choices of outputs of one model of which the messages are kept."""


Read: TypeAlias = tuple[int | str, int | None]
"""The id of a sequence, and where the caller says that it stands."""


class Hearer(Protocol):
    """Who hears what became of a request, once."""

    def answered(self, reply: Reply) -> None:
        """It was applied; the messages of `reply` stand until the next answer."""

    def failed(self, error: errors.StatestreamError) -> None:
        """It was not applied, or its answer may not leave."""


class _Port(NamedTuple):
    """A tensor on the wire: its steps lie one behind the other.

    Attributes:
        name, datatype: As they are written.
        shape: Of one step, with the graph's own axes, a batch of 1.
        time: The axis of the steps, None where there is one step.
        nbytes: Of one step.
        packed: Whether several steps lie as the graph has them.
    """

    name: str
    datatype: str
    shape: list[int]
    time: int | None
    nbytes: int
    packed: bool

    def of(self, steps: int) -> list[int]:
        """The shape of so many steps."""
        if steps == 1 or self.time is None:
            return self.shape
        return [*self.shape[: self.time], steps, *self.shape[self.time + 1 :]]


class _Known(NamedTuple):
    """What is known of a table; no inputs where a tensor's shape varies."""

    inputs: Sequence[_Port]
    outputs: Sequence[_Port]
    each: int
    longest: bool
    replies: dict[tuple[str, ...], Reply]


class Reply:
    """The messages that answer requests for some outputs of one model, used again for the next."""

    def __init__(self, version: int, ports: Sequence[_Port], places: Sequence[int]) -> None:
        """Of the outputs at some places of the signature."""
        self.streamed = pb.ModelStreamInferResponse()
        """The answer of a stream, which has `message` in it."""
        self.message = message = self.streamed.infer_response
        message.model_version = str(version)
        for place in places:
            port = ports[place]
            message.outputs.add(name=port.name, datatype=port.datatype, shape=port.shape)
            message.raw_output_contents.append(b"")
        self._id, self._position = message.parameters["sequence_id"], message.parameters["sequence_position"]
        self._ports, self._places, self._steps = [ports[place] for place in places], places, 1

    def fill(self, request: str, model: str, sequence: int | str, step: Applied) -> None:
        """The answer to one request."""
        message = self.message
        message.id, message.model_name = request, model
        if isinstance(sequence, str):
            self._id.string_param = sequence
        else:
            self._id.int64_param = sequence
        self._position.int64_param = step.position
        if step.steps != self._steps:
            self._steps = step.steps
            for tensor, port in zip(message.outputs, self._ports, strict=True):
                tensor.shape[:] = port.of(step.steps)
        contents, outputs = message.raw_output_contents, step.outputs
        for number, place in enumerate(self._places):
            contents[number] = outputs[place]


class Sequences:
    """The usual requests of sequences."""

    def __init__(self, server: Server, inference: Inference) -> None:
        """What is asked is counted by `inference`."""
        self._express = server.express
        self._registry = server.registry
        self._most_steps = server.settings.limits.max_chunk_steps
        self._asked = inference.asked
        self._known = WeakKeyDictionary[Table, _Known]()

    def take(self, request: Any, tenant: str, hearer: Hearer, read: Read | None = None) -> bool:
        """Takes a request; False where others must look at it. `read` is what `read_sequence` read of it, if it did.

        Raises:
            ModelNotFound: The model is not served.
        """
        if type(request) is not pb.ModelInferRequest:
            return False
        raw, name, model = request.raw_input_contents, request.id, request.model_name
        sequence, position = read or read_sequence(request)
        if not sequence or not raw or len(name) > _LONGEST_NAME:
            return False
        version = parameters.version_of(request.model_version) or self._registry.get(model).model.version
        found = self._express.find(Key(tenant, model, str(sequence)), version)
        if found is None:
            return False
        table, row = found
        known = self._known.get(table) or self._learn(table)
        inputs, ports = request.inputs, known.inputs
        if not ports or len(inputs) != len(ports) or len(raw) != len(ports):
            return False
        steps = 1
        if ports[0].time is not None:
            shape = inputs[0].shape
            steps = shape[ports[0].time] if len(shape) == len(ports[0].shape) else 0
        if steps != 1 and not (known.longest and 1 < steps <= self._most_steps):
            return False
        packed = list[bytes]()
        for place, port in enumerate(ports):
            tensor, data = inputs[place], raw[place]
            if (
                tensor.name != port.name
                or tensor.datatype != port.datatype
                or tensor.shape != port.of(steps)
                or len(data) != steps * port.nbytes
                or tensor.parameters
                or tensor.HasField("contents")
            ):
                return False
            packed.append(data)
        reply = known.replies.get(()) if not request.outputs else self._reply(table, known, request)
        if reply is None:
            return False
        asker = _Asker(hearer, reply, name, model, sequence, self._asked.setdefault((model, version), Asked()))
        return self._express.put(
            table, row, steps, packed, asker,
            position=position, acked=position or 0, request=digests.of_text(name) if name else 0, durable=True,
        )  # fmt: skip

    def size(self, request: Any) -> int:
        """The bytes of a request's contents."""
        return sum(map(len, request.raw_input_contents))

    def _reply(self, table: Table, known: _Known, request: pb.ModelInferRequest) -> Reply | None:
        """What answers a request that names its outputs; None where more is said of them, or one does not exist."""
        if any(output.parameters for output in request.outputs):
            return None
        names = tuple([output.name for output in request.outputs])
        found = known.replies.get(names)
        if found is None:
            places = [port.name for port in known.outputs]
            if len(set(names)) != len(names) or not set(names) <= set(places) or len(known.replies) > _MOST_REPLIES:
                return None
            chosen = [places.index(name) for name in names]
            found = known.replies[names] = Reply(table.model.version, known.outputs, chosen)
        return found

    def _learn(self, table: Table) -> _Known:
        signature = table.model.signature
        inputs, outputs = [_port(spec) for spec in signature.inputs], [_port(spec) for spec in signature.outputs]
        usual = all(min(port.shape, default=0) >= 0 for port in (*inputs, *outputs))
        longest = all(port.packed for port in (*inputs, *outputs))
        replies = dict[tuple[str, ...], Reply]()
        if usual:
            replies[()] = Reply(table.model.version, outputs, range(len(outputs)))
        known = self._known[table] = _Known(
            inputs if usual else (), outputs, table.input_bytes + table.output_bytes, longest, replies
        )
        return known


def read_sequence(request: pb.ModelInferRequest) -> Read:
    """The id and position of a request that is the next of its sequence, and nothing else; 0 for the id otherwise."""
    sequence: int | str = 0
    position = None
    found = request.parameters
    for name in found:
        parameter = found[name]
        which = parameter.WhichOneof("parameter_choice")
        if name == "sequence_id" and which == "int64_param":
            sequence = parameter.int64_param
        elif name == "sequence_id" and which == "string_param":
            sequence = parameter.string_param
        elif name in ("sequence_start", "sequence_end") and which == "bool_param" and not parameter.bool_param:
            pass
        elif name == "sequence_position" and which == "int64_param":
            position = parameter.int64_param
        elif name not in parameters.HINTS:
            return 0, None
    return sequence, position


def _port(spec: TensorSpec) -> _Port:
    batch, time = batch_axis_of(spec), time_axis_of(spec)
    one = list(step_shape(spec))
    # The steps lie one behind the other where no axis but the batch's, which is 1 long, comes before theirs.
    packed = time is not None and (time == 0 or (batch == 0 and time == 1))
    shape = [1 if axis in (batch, time) else size for axis, size in enumerate(spec.shape)]
    free = [size for size in one if size < 0]
    return _Port(
        spec.name,
        datatypes.datatype_of(spec.dtype),
        [-1] if free else shape,
        time,
        0 if free else step_bytes(spec),
        packed,
    )


class _Asker:
    """Hears what became of one request's chunk."""

    __slots__ = ("_asked", "_began", "_hearer", "_model", "_name", "_reply", "_sequence")

    def __init__(self, hearer: Hearer, reply: Reply, name: str, model: str, sequence: int | str, asked: Asked) -> None:
        self._hearer = hearer
        self._reply = reply
        self._name = name
        self._model = model
        self._sequence = sequence
        self._asked = asked
        self._began = time.perf_counter()

    def applied(self, step: Applied) -> None:
        self._asked.answered(time.perf_counter() - self._began, step.steps)
        self._reply.fill(self._name, self._model, self._sequence, step)
        self._hearer.answered(self._reply)

    def refused(self, error: errors.StatestreamError) -> None:
        self._asked.refused(time.perf_counter() - self._began)
        self._hearer.failed(error)
