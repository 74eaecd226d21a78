"""Files with damage, by seed: the server lives, and what it answers is what ONNX Runtime alone makes of the file."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest

from statestream import signature as signatures
from statestream.signature import Signature, StateSpec, TensorSpec
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2
from statestream_server.models.rows import Axes
from tests.support import hostile, models
from tests.support.arrays import Arrays, arrays_of, tensor
from tests.support.calls import Caller, connected
from tests.support.serving import process

SEEDS: dict[str, Callable[[], onnx.ModelProto]] = {
    "gru": models.gru,
    "lstm": models.lstm,
    "counter": models.counter,
    "tokens": models.tokens,
    "scores": models.scores,
}
STEPS = 3


def mutated(draw: random.Random) -> bytes:
    """One of the seeds with some damage: to its bytes, or to what they say."""
    made = SEEDS[draw.choice([*SEEDS])]()
    if draw.random() < 0.6:
        for _ in range(draw.randrange(1, 3)):
            change(draw, made)
        return made.SerializeToString()
    data = bytearray(made.SerializeToString())
    match draw.randrange(4):
        case 0:
            del data[draw.randrange(len(data)) :]
        case 1:
            at = draw.randrange(len(data))
            data[at:at] = data[at : at + draw.randrange(1, 64)]
        case _:
            for _ in range(draw.randrange(1, 4)):
                data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def change(draw: random.Random, made: onnx.ModelProto) -> None:
    """Another wiring, operator, attribute, weight, type, axis or signature."""
    node, tensor_ = draw.choice(made.graph.node), draw.choice([*made.graph.initializer] or [onnx.TensorProto()])
    values = [*made.graph.input, *made.graph.output]
    names = [name for one in made.graph.node for name in (*one.input, *one.output)]
    match draw.randrange(9):
        case 0 if node.input:
            node.input[draw.randrange(len(node.input))] = draw.choice(names)
        case 1:
            node.op_type = draw.choice([one.op_type for one in made.graph.node] + ["Neg", "Tanh", "Identity", "Sub"])
        case 2 if node.attribute:
            attribute = draw.choice(node.attribute)
            attribute.i = draw.choice([-1, 0, 1, 2, 1 << 40])
        case 3 if tensor_.raw_data:
            raw = bytearray(tensor_.raw_data)
            raw[draw.randrange(len(raw))] = draw.randrange(256)
            tensor_.raw_data = bytes(raw)
        case 4:
            tensor_.data_type = draw.choice([1, 6, 7, 9, 10, 11, 99])
        case 5 if tensor_.dims:
            tensor_.dims[draw.randrange(len(tensor_.dims))] = draw.choice([0, 1, 3, 7, -1, 1 << 40])
        case 6:
            draw.choice(values).type.tensor_type.elem_type = draw.choice([1, 6, 7, 9, 10, 11])
        case 7:
            shape = draw.choice(values).type.tensor_type.shape.dim
            if shape:
                draw.choice(shape).dim_value = draw.choice([0, 1, 2, 5, -3, 1 << 40])
        case _:
            for entry in made.metadata_props:
                text = bytearray(entry.value.encode())
                text[draw.randrange(len(text))] = draw.choice(b'0123456789",[]{}:ax-')
                entry.value = text.decode()


def drawn(draw: np.random.Generator, spec: TensorSpec, steps: int) -> Any:
    """Values of one session [steps, *step], or of a call; axes of free length have two."""
    shape = [size if size >= 0 else 2 for size in signatures.step_shape(spec)]
    dtype = signatures.numpy_dtype(spec.dtype)
    if dtype.kind == "f":
        return draw.standard_normal((steps, *shape)).astype(dtype)
    return draw.integers(0, 2, (steps, *shape)).astype(dtype)


class Alone:
    """ONNX Runtime by itself on a file, with the states kept by hand."""

    def __init__(self, path: Path, signature: Signature) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._signature = signature
        self._states = {spec.input: signatures.start_row(spec) for spec in signature.states}

    def call(self, inputs: Arrays) -> dict[str, Any]:
        names = [spec.name for spec in self._signature.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def step(self, inputs: Arrays) -> dict[str, Any]:
        """One step, [*step] of every input."""
        signature = self._signature
        axes: Mapping[str, tuple[TensorSpec | StateSpec, Axes]] = {
            **{spec.name: (spec, Axes.of_tensor(spec)) for spec in (*signature.inputs, *signature.outputs)}
        }
        fed = {spec.name: axes[spec.name][1].to_graph(inputs[spec.name][None, None]) for spec in signature.inputs}
        for spec in signature.states:
            fed[spec.input] = Axes.of_state(spec).to_graph(self._states[spec.input][None])
        names = [spec.name for spec in signature.outputs] + [spec.output for spec in signature.states]
        found = dict(zip(names, self._session.run(names, fed), strict=True))
        for spec in signature.states:
            self._states[spec.input] = Axes.of_state(spec).from_graph(found[spec.output])[0]
        return {spec.name: axes[spec.name][1].from_graph(found[spec.name])[0, 0] for spec in signature.outputs}


def same(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> None:
    assert ours.keys() == theirs.keys(), what
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, what
        assert array.shape == theirs[name].shape, what
        kind = {"rtol": 1e-4, "atol": 1e-5} if array.dtype.kind == "f" else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(array, theirs[name], err_msg=what, equal_nan=True, **kind)


async def checked(caller: Caller, path: Path, model: model_pb2.Model, seed: int) -> bool:
    """Compares what is answered; whether anything was."""
    draw, signature, what = np.random.default_rng(seed), model.signature, f"seed {seed}"
    try:
        alone = Alone(path, signature)
        if model.kind == model_pb2.MODEL_KIND_PREDICT:
            inputs = {}
            for spec in signature.inputs:
                shape = [size if size >= 0 else 2 for size in spec.shape]
                plain = TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape)
                inputs[spec.name] = drawn(draw, plain, 1)[0]
            request = pb.PredictRequest(model=model.name, inputs=[tensor(*each) for each in inputs.items()])
            answer = await caller.inference.Predict(request)
            same(arrays_of(answer.outputs), alone.call(inputs), what)
            return True
        every = {spec.name: drawn(draw, spec, STEPS) for spec in signature.inputs}
        for step in range(STEPS):
            inputs = {name: array[step : step + 1] for name, array in every.items()}
            answer = await caller.step(model.name, "a", inputs)
            theirs = alone.step({name: array[step] for name, array in every.items()})
            same({name: array[0] for name, array in arrays_of(answer.outputs).items()}, theirs, what)
        return True
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            raise AssertionError(f"{what}: {error.details()}") from error
        return False


@pytest.mark.parametrize(
    "count",
    [200, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
async def test_a_server_outlives_mutated_files_and_answers_as_onnx_runtime_does(tmp_path: Path, count: int) -> None:
    folder = models.write(tmp_path / "models", "counter")
    options = ("--store", "memory", "--no-watch", "--no-proof-cache", "--load-memory", "1024", "--load-timeout", "20")
    served = answered = 0
    with process(folder, *options) as server:
        async with connected(server.address) as channel:
            caller = Caller(channel)
            for seed in range(count):
                path = hostile.put(mutated(random.Random(f"mutated {seed}")), folder, f"m{seed}")
                call = caller.models.LoadModel(model_pb2.LoadModelRequest(name=f"m{seed}"))
                said = str(await call.details())
                if await call.code() == grpc.StatusCode.OK:
                    served += 1
                    answered += await checked(caller, path, (await call).model, seed)
                else:
                    assert await call.code() == grpc.StatusCode.FAILED_PRECONDITION, f"seed {seed}: {said}"
                    assert str(path) in said
                    assert "\n" not in said
                shutil.rmtree(folder / f"m{seed}")
            await caller.step("counter", "a", {"x": np.ones((1, 1), np.float32)})
        assert server.stop() == 0
    print(f"{served} of {count} were served, {answered} answered")
    assert served > count / 20
    assert answered > count / 25
