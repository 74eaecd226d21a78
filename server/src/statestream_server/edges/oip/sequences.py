"""Sequences: the usual request, the next steps of a sequence that is here, is taken and answered the quick way.

What a request says beside its contents is looked at once, and known by its bytes from then on (heads.py). Whatever is
not as usual is left to inference.py, which also says what is wrong with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

from statestream.contract import errors
from statestream.contract.signature import TensorSpec, step_shape
from statestream.contract.specs import batch_axis_of, time_axis_of
from statestream_server.edges.oip import datatypes, heads, parameters
from statestream_server.edges.oip import oip_pb2 as pb
from statestream_server.edges.oip.answers import Answers, Outputs, Port
from statestream_server.edges.oip.heads import Heads
from statestream_server.edges.oip.inference import Asked, Inference
from statestream_server.engine import digests
from statestream_server.engine.table import Table
from statestream_server.server import Server
from statestream_server.sessions.express import Applied
from statestream_server.shapes import step_bytes
from statestream_server.stores.base import Key

_LONGEST_NAME: Final = 256
"""Bytes of a request's id at most; of more others see whether that is too much."""
_MOST_OUTPUTS: Final = 16
"""Choices of outputs of one model that are kept."""


Read: TypeAlias = tuple[int | str, int | None]
"""The id of a sequence, and where the caller says that it stands."""


@dataclass(slots=True, frozen=True)
class Head:
    """What the requests of one sequence say beside their contents, and where the sequence is.

    Attributes:
        table: The table, as long as it is there.
        row, serial: The sequence's row, and the number of that use of it.
        key: The session.
        named: Whether they name a version.
        steps: The steps of a request.
        nbytes: The bytes of its contents.
        answers: What it is answered with.
        asked: Counts it.
    """

    table: ref[Table]
    row: int
    serial: int
    key: Key
    named: bool
    steps: int
    nbytes: int
    answers: Answers
    asked: Asked


Seen: TypeAlias = "heads.Seen[Head]"


class Asker:
    """A request; hears what became of it, once."""

    __slots__ = ("_began", "_head", "_name")

    _head: Head
    _name: bytes
    _began: float

    def began(self, head: Head, name: bytes) -> None:
        """It is taken, under its id."""
        self._head = head
        self._name = name
        self._began = time.perf_counter()

    def applied(self, step: Applied) -> None:
        """Its chunk was applied."""
        head = self._head
        head.asked.answered(time.perf_counter() - self._began, step.steps)
        self.answered(head.answers.answer(self._name, step.position, step.steps, step.outputs))

    def refused(self, error: errors.StatestreamError) -> None:
        """Its chunk was not applied."""
        self._head.asked.refused(time.perf_counter() - self._began)
        self.failed(error)

    def answered(self, answer: bytes) -> None:
        """It was applied, and is answered by this ModelInferResponse."""
        raise NotImplementedError

    def failed(self, error: errors.StatestreamError) -> None:
        """It was not applied, or its answer may not leave."""
        raise NotImplementedError


class _Known(NamedTuple):
    """What is known of a table; no inputs where a tensor's shape varies."""

    inputs: Sequence[Port]
    outputs: Sequence[Port]
    longest: bool
    choices: dict[tuple[str, ...], Outputs]


class Sequences:
    """The usual requests of sequences."""

    def __init__(self, server: Server, inference: Inference) -> None:
        """What is asked is counted by `inference`."""
        self._express = server.express
        self._registry = server.registry
        self._most_steps = server.settings.limits.max_chunk_steps
        self._asked = inference.asked
        self._known = WeakKeyDictionary[Table, _Known]()
        self._heads = Heads[Head]()

    def seen(self, data: bytes, tenant: str) -> Seen | None:
        """What a request says that looks like one before it, whose sequence is here and has nothing to do; or None."""
        seen = self._heads.find(tenant, data)
        if seen is None:
            return None
        head = seen[0]
        table, row = head.table(), head.row
        if (
            table is None
            or table.serial.item(row) != head.serial
            or not self._registry.serves(table, named=head.named)
            or not self._express.is_free(table, row, head.key)
        ):
            return None
        return seen

    def take_seen(self, seen: Seen, asker: Asker) -> bool:
        """Takes a request that was seen just now; False where others must look at it."""
        head, name, position, contents = seen
        table = head.table()
        if table is None:
            return False
        digest = 0
        if name:
            try:
                digest = digests.of_text(name.decode())
            except UnicodeDecodeError:
                return False
        asker.began(head, name)
        return self._express.put(
            table, head.row, head.steps, contents, asker,
            position=position, acked=position or 0, request=digest, durable=True,
        )  # fmt: skip

    def take(self, request: Any, tenant: str, asker: Asker, read: Read | None = None, data: bytes = b"") -> bool:
        """Takes a request; False where others must look at it.

        Args:
            request: The message.
            tenant: Whose sequences it means.
            asker: Hears of it.
            read: What `read_sequence` read of it, if it did.
            data: Its bytes, by which the next one like it is known; none where they are not at hand.

        Raises:
            ModelNotFound: The model is not served.
        """
        if type(request) is not pb.ModelInferRequest:
            return False
        raw, name, model = request.raw_input_contents, request.id, request.model_name
        sequence, position = read or read_sequence(request)
        if not sequence or not raw or len(name) > _LONGEST_NAME:
            return False
        version, alias = parameters.version_of(request.model_version)
        named = bool(version or alias)
        if not named:
            version = self._registry.get(model).model.version
        key = Key(tenant, model, str(sequence))
        found = self._express.find(key, version)
        if found is None:
            return False
        table, row = found
        known = self._known.get(table) or self._learn(table)
        steps = self._steps(known, request)
        outputs = known.choices.get(()) if not request.outputs else self._choice(table, known, request)
        if not steps or outputs is None:
            return False
        serving = table.model.version
        head = Head(
            ref(table), row, table.serial.item(row), key, named, steps, sum(map(len, raw)),
            Answers(model, sequence, outputs), self._asked.setdefault((model, serving), Asked()),
        )  # fmt: skip
        packed = [*raw]
        asker.began(head, name.encode())
        taken = self._express.put(
            table, row, steps, packed, asker,
            position=position, acked=position or 0, request=digests.of_text(name) if name else 0, durable=True,
        )  # fmt: skip
        if taken and data:
            self._heads.learn(tenant, data, head, name.encode(), position, packed)
        return taken

    def _steps(self, known: _Known, request: pb.ModelInferRequest) -> int:
        """How many steps a request has; 0 where its inputs are not as usual."""
        inputs, raw, ports, steps = request.inputs, request.raw_input_contents, known.inputs, 1
        if not ports or len(inputs) != len(ports) or len(raw) != len(ports):
            return 0
        if ports[0].time is not None:
            shape = inputs[0].shape
            steps = shape[ports[0].time] if len(shape) == len(ports[0].shape) else 0
        if steps != 1 and not (known.longest and 1 < steps <= self._most_steps):
            return 0
        for port, tensor, data in zip(ports, inputs, raw, strict=True):
            if (
                tensor.name != port.name
                or tensor.datatype != port.datatype
                or tensor.shape != port.of(steps)
                or len(data) != steps * port.nbytes
                or tensor.parameters
                or tensor.HasField("contents")
            ):
                return 0
        return steps

    def _choice(self, table: Table, known: _Known, request: pb.ModelInferRequest) -> Outputs | None:
        """The outputs that a request names; None where more is said of them, or one does not exist."""
        if any(output.parameters for output in request.outputs):
            return None
        names = tuple([output.name for output in request.outputs])
        found = known.choices.get(names)
        if found is None:
            places = [port.name for port in known.outputs]
            if len(set(names)) != len(names) or not set(names) <= set(places) or len(known.choices) > _MOST_OUTPUTS:
                return None
            chosen = [places.index(name) for name in names]
            found = known.choices[names] = Outputs(table.model.version, known.outputs, chosen)
        return found

    def _learn(self, table: Table) -> _Known:
        signature = table.model.signature
        inputs, outputs = [_port(spec) for spec in signature.inputs], [_port(spec) for spec in signature.outputs]
        usual = all(min(port.shape, default=0) >= 0 for port in (*inputs, *outputs))
        longest = all(port.packed for port in (*inputs, *outputs))
        choices = dict[tuple[str, ...], Outputs]()
        if usual:
            choices[()] = Outputs(table.model.version, outputs, range(len(outputs)))
        known = self._known[table] = _Known(inputs if usual else (), outputs, longest, choices)
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


def _port(spec: TensorSpec) -> Port:
    batch, time = batch_axis_of(spec), time_axis_of(spec)
    one = list(step_shape(spec))
    # The steps lie one behind the other where no axis but the batch's, which is 1 long, comes before theirs.
    packed = time is not None and (time == 0 or (batch == 0 and time == 1))
    shape = [1 if axis in (batch, time) else size for axis, size in enumerate(spec.shape)]
    free = [size for size in one if size < 0]
    return Port(
        spec.name,
        datatypes.datatype_of(spec.dtype),
        [-1] if free else shape,
        time,
        0 if free else step_bytes(spec),
        packed,
    )
