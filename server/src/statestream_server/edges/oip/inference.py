"""Inference: a request of the protocol, however it came, is a run of a model or the next steps of a session."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np

from statestream.contract import errors
from statestream.contract.errors import quoted, shortened
from statestream.contract.signature import TensorSpec, step_shape
from statestream_server import caller
from statestream_server.arrays import Array
from statestream_server.edges.oip import datatypes, parameters, steps
from statestream_server.engine import digests
from statestream_server.models.model import Kind, Model
from statestream_server.server import Server
from statestream_server.sessions.unary import Step, Target
from statestream_server.shapes import step_bytes
from statestream_server.stores.base import Key, Mode


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked.

    Attributes:
        model: The model's name.
        named: Its version as the caller names it.
        id: What the caller calls the request, "" for nothing.
        inputs: By name, with the graph's own axes.
        outputs: Those that are wanted, none for all, with how many classes are told in place of the values, 0 for the
            values.
        parameters: As they came.
    """

    model: str
    named: parameters.Named
    id: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, int]
    parameters: Mapping[str, parameters.Value]


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered.

    Attributes:
        version: The version that ran.
        outputs: Name, datatype and array of each output, in the order in which they were asked for.
        parameters: Of a sequence its id and where it stands.
    """

    version: int
    outputs: Sequence[tuple[str, str, Array]]
    parameters: Mapping[str, parameters.Value] = field(default_factory=dict)


@dataclass(slots=True)
class Asked:
    """What was asked of one version over this protocol.

    Attributes:
        runs: Rows of runs and steps of sequences.
        good, bad: Requests that were answered, and that were not.
        good_seconds, bad_seconds: How long they took together.
        last: When the last one ended, in Unix time.
    """

    runs: int = 0
    good: int = 0
    bad: int = 0
    good_seconds: float = 0.0
    bad_seconds: float = 0.0
    last: float = 0.0

    def answered(self, seconds: float, runs: int) -> None:
        """A request was answered, with so many rows or steps."""
        self.good += 1
        self.good_seconds += seconds
        self.runs += runs
        self.last = time.time()

    def refused(self, seconds: float) -> None:
        """A request was not answered."""
        self.bad += 1
        self.bad_seconds += seconds
        self.last = time.time()


_made = WeakKeyDictionary[Server, "Inference"]()


def inference_of(server: Server) -> Inference:
    """What answers the requests of a server: one for all edges, so that what was asked is counted together."""
    found = _made.get(server)
    if found is None:
        found = _made[server] = Inference(server)
    return found


class Inference:
    """Answers requests."""

    def __init__(self, server: Server) -> None:
        """With what `server` has; nothing was asked yet."""
        # Its rooms, not itself: it is not to live as long as what was asked of it.
        self._registry, self._predictor, self._unary = server.registry, server.predictor, server.unary
        self._admin = server.admin
        self.asked: dict[tuple[str, int], Asked] = {}

    async def infer(self, request: Request) -> Response:
        """Runs a model, or applies the next steps of a sequence.

        A step is durable before this returns (see `Unary.step`), and one that comes twice under one id, or at one
        `sequence_position`, is applied once and answered twice. Cancelled, a step may have been applied.

        Raises:
            StatestreamError: Nothing was run, or what was may not be told.
        """
        model = self._registry.get(request.model, *_begun(request)).model
        asked = self.asked.setdefault((model.name, model.version), Asked())
        began = time.perf_counter()
        try:
            response = await self._answer(model, request)
        except errors.StatestreamError:
            asked.refused(time.perf_counter() - began)
            raise
        runs = _rows(model, {name: array.shape for name, array in request.inputs.items()})
        asked.answered(time.perf_counter() - began, runs)
        return response

    def answer_bytes(self, name: str, version: str, shapes: Mapping[str, Sequence[int]]) -> int:
        """How many bytes an answer to inputs of these shapes has, as far as the signature knows."""
        try:
            model = self._registry.get(name, *parameters.version_of(version)).model
        except errors.ModelNotFound:
            return 0
        known = [spec for spec in model.signature.outputs if min(step_shape(spec), default=0) >= 0]
        return _rows(model, shapes) * sum(map(step_bytes, known))

    async def _answer(self, model: Model, request: Request) -> Response:
        """As `infer`. Inputs of a session without their axis of time are one step, and so are the outputs then."""
        specs = [spec for spec in model.signature.inputs if spec.HasField("time_axis")]
        arrays = request.inputs
        if model.kind != Kind.SESSION or not specs or not _are_short(specs, arrays):
            return await self._answer_whole(model, request)
        whole = {spec.name: np.expand_dims(arrays[spec.name], spec.time_axis) for spec in specs}
        response = await self._answer_whole(model, replace(request, inputs={**arrays, **whole}))
        axes = {spec.name: spec.time_axis for spec in model.signature.outputs if spec.HasField("time_axis")}
        outputs = [
            (name, kind, array.squeeze(axes[name]) if name in axes and array.shape[axes[name]] == 1 else array)
            for name, kind, array in response.outputs
        ]
        return replace(response, outputs=outputs)

    async def _answer_whole(self, model: Model, request: Request) -> Response:
        sequence = parameters.sequence_of(request.parameters)
        if model.kind == Kind.SESSION:
            if sequence is None:
                raise errors.BadFrame(
                    f"model {model.name!r} has memory; expected the parameter sequence_id (a number other than 0, or a"
                    " text), with sequence_start on its first request",
                    metadata={"field": "sequence_id"},
                )
            return await self._step(model, request, sequence)
        if sequence is not None:
            raise errors.BadFrame(
                f"model {model.name!r} has no memory, and the request names sequence {quoted(sequence.session)};"
                " expected no sequence_id",
                metadata={"field": "sequence_id"},
            )
        inputs = _in_order(model.signature.inputs, request.inputs)
        predictor = self._predictor
        wanted = predictor.asked(predictor.model(model.name, model.version), list(request.outputs))
        found = await predictor.predict(wanted, inputs)
        outputs = [_output(spec, array, request) for spec, array in zip(wanted.specs, found, strict=True)]
        return Response(model.version, outputs)

    async def _step(self, model: Model, request: Request, sequence: parameters.Sequence) -> Response:
        unary, signature = self._unary, model.signature
        count, inputs = steps.packed(signature.inputs, _in_order(signature.inputs, request.inputs))
        unary.check_steps(count)
        wanted = _wanted(signature.outputs, request.outputs)
        steps.check_one_step(wanted, count)
        key = caller.key(request.model, sequence.session)
        target = await self._target(key, request, sequence, count)
        if target.table.model is not model:  # It is pinned to another version than the one that was named by an alias.
            signature = target.table.model.signature
            count, inputs = steps.packed(signature.inputs, _in_order(signature.inputs, request.inputs))
            wanted = _wanted(signature.outputs, request.outputs)
            steps.check_one_step(wanted, count)
        try:
            step = await self._applied(target, key, request, sequence, inputs, count)
        except errors.PositionError:
            if await unary.moved(target):
                target = await self._target(key, request, sequence, count)
            elif sequence.start:
                # It starts anew where an older one of that name stands just behind its first steps.
                target = await unary.target(key, request.named.version, Mode.REPLACE, request.named.alias)
            else:
                raise
            step = await self._applied(target, key, request, sequence, inputs, count)
        if sequence.end:
            await self._admin.delete(key)
        arrays = dict(zip((spec.name for spec in signature.outputs), step.outputs, strict=True))
        told: dict[str, parameters.Value] = {"sequence_id": sequence.id, "sequence_position": step.position}
        outputs = [_output(spec, steps.unpacked(spec, arrays[spec.name]), request) for spec in wanted]
        return Response(target.table.model.version, outputs, told)

    async def _target(self, key: Key, request: Request, sequence: parameters.Sequence, count: int) -> Target:
        """The session of a sequence.

        A start makes it anew. One that may be a repetition (it counts, or has an id) goes on with what the first one
        made: where that stands behind just these steps, or was this very request.

        Raises:
            BadFrame: The sequence did not start.
        """
        unary = self._unary
        if not sequence.start:
            try:
                return await unary.target(key, request.named.version, Mode.RESUME, request.named.alias)
            except errors.SessionNotFound as error:
                raise errors.BadFrame(
                    f"sequence {quoted(sequence.session)} of model {request.model!r} has not started, or has ended;"
                    " expected sequence_start on its first request",
                    metadata={"field": "sequence_start"},
                ) from error
        if request.id or sequence.position is not None:
            target = await unary.target(key, request.named.version, Mode.EITHER, request.named.alias)
            position, name = int(target.table.position[target.row]), int(target.table.request[target.row])
            again = request.id and name | 1 == digests.of_text(request.id)
            if not position or again or (sequence.position is not None and position == count):
                return target
        return await unary.target(key, request.named.version, Mode.REPLACE, request.named.alias)

    async def _applied(
        self,
        target: Target,
        key: Key,
        request: Request,
        sequence: parameters.Sequence,
        inputs: Sequence[Array],
        count: int,
    ) -> Step:
        position = sequence.position
        return await self._unary.step(
            target, key, count, inputs, position=position, acked=position or 0, request_id=request.id, durable=True
        )


def _begun(request: Request) -> parameters.Named:
    """The version whose signature a request is read by: of a sequence that goes on, no alias says which it is."""
    goes_on = request.parameters.get("sequence_id") and not request.parameters.get("sequence_start")
    return parameters.Named() if goes_on and request.named.alias else request.named


def _are_short(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> bool:
    """Whether all of these inputs lack an axis, which is that of time: no other could be meant."""
    return all(spec.name in arrays and arrays[spec.name].ndim == len(spec.shape) - 1 for spec in specs)


def _in_order(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> list[Array]:
    """The inputs in the order of a signature.

    Raises:
        BadTensor: One is missing or unknown.
    """
    names = [spec.name for spec in specs]
    if inputs.keys() != set(names):
        came = ", ".join(shortened(name) for name in list(inputs)[:16]) or "none"
        raise errors.BadTensor(f"inputs are {came}; expected {', '.join(names)}", metadata={"field": "inputs"})
    return [inputs[name] for name in names]


def _wanted(specs: Sequence[TensorSpec], asked: Mapping[str, int]) -> list[TensorSpec]:
    """The outputs that are asked for, none for all.

    Raises:
        BadTensor: One does not exist.
    """
    found = {spec.name: spec for spec in specs}
    unknown = [name for name in asked if name not in found]
    if unknown:
        raise errors.BadTensor(
            f"output {quoted(unknown[0])} does not exist; the model has {', '.join(found)}",
            metadata={"field": "outputs"},
        )
    return [found[name] for name in asked] or list(specs)


def _output(spec: TensorSpec, array: Array, request: Request) -> tuple[str, str, Array]:
    classes = request.outputs.get(spec.name, 0)
    if classes:
        return spec.name, datatypes.BYTES, _likeliest(spec, array, classes)
    return spec.name, datatypes.datatype_of(spec.dtype), array


def _likeliest(spec: TensorSpec, array: Array, count: int) -> Array:
    """The classes of the highest scores along the last axis, the highest first, as `score:number[:name]`."""
    if not array.ndim or array.dtype.kind not in "fiu":
        raise errors.BadTensor(
            f"output {spec.name!r} is {array.dtype}{list(array.shape)}; expected numbers with an axis of classes for"
            " the parameter classification",
            metadata={"field": spec.name},
        )
    flat = array.reshape(-1, array.shape[-1]) if array.size else array.reshape(0, array.shape[-1])
    places = np.argsort(-flat.astype(np.float64), axis=1, kind="stable")[:, :count]
    told = [
        f"{row[place]:f}:{place}" + (f":{spec.classes[place]}" if place < len(spec.classes) else "")
        for row, chosen in zip(flat, places.tolist(), strict=True)
        for place in chosen
    ]
    return datatypes.texts(told, (*array.shape[:-1], places.shape[1]))


def _rows(model: Model, shapes: Mapping[str, Sequence[int]]) -> int:
    """The rows of a run, or the steps of a session, by the shapes of the inputs."""
    spec = model.signature.inputs[0]
    shape = shapes.get(spec.name, ())
    axis = spec.time_axis if model.kind == Kind.SESSION and spec.HasField("time_axis") else None
    if axis is not None and len(shape) < len(spec.shape):
        return 1  # One step, without its axis.
    if axis is None and model.kind == Kind.PREDICT and spec.HasField("batch_axis"):
        axis = spec.batch_axis
    return max(0, shape[axis]) if axis is not None and axis < len(shape) else 1
