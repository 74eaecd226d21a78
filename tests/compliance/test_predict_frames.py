"""Predict frames: many calls of a model without memory in one frame, beside sessions on the same stream."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from statestream.contract.partial import PART, Cut
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2
from tests.support.arrays import arrays_of, tensor, u32
from tests.support.calls import Caller, Failure, failure_of
from tests.support.speaker import Speaker, fresh_id
from tests.support.subject import Subject, random_steps


@pytest.fixture
async def model(caller: Caller) -> model_pb2.Model:
    """A model without memory whose batch axes are all the first."""
    for model in (await caller.models.ListModels(model_pb2.ListModelsRequest())).models:
        specs = [*model.signature.inputs, *model.signature.outputs]
        if model.kind == model_pb2.ModelKind.MODEL_KIND_PREDICT and all(
            spec.HasField("batch_axis") and spec.batch_axis == 0 for spec in specs
        ):
            return model
    pytest.skip("the server has no model without memory whose batch axes are the first")


def rows_of(model: model_pb2.Model, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {spec.name: random_steps(spec, count, random) for spec in model.signature.inputs}


def frame_of(model: model_pb2.Model, inputs: dict[str, np.ndarray], rows: list[int], **more: Any) -> pb.PredictFrame:
    tensors = [tensor(name, array) for name, array in inputs.items()]
    return pb.PredictFrame(model=model.name, inputs=tensors, rows=u32(*rows) if rows else b"", **more)


async def answered(speaker: Speaker, rows: list[int]) -> dict[int, dict[str, np.ndarray] | Failure]:
    """The answers to the calls of one frame, by their places."""
    found: dict[int, dict[str, np.ndarray] | Failure] = {}
    while len(found) < len(rows):
        predicted = await speaker.expect("predicted")
        places = np.frombuffer(predicted.calls, "<u4").tolist() or list(range(len(rows)))
        outputs, start = arrays_of(predicted.outputs), 0
        for place in places if outputs else ():
            assert place not in found
            found[place] = {name: array[start : start + rows[place]] for name, array in outputs.items()}
            start += rows[place]
        assert all(len(array) == start for array in outputs.values())
        found |= {row.handle: failure_of(row.status) for row in predicted.errors}
    return found


async def test_calls_of_a_frame_are_answered_as_calls_alone(
    caller: Caller, speaker: Speaker, model: model_pb2.Model
) -> None:
    rows = [1, 3, 0, 2]
    inputs = rows_of(model, sum(rows))
    await speaker.send(predict=frame_of(model, inputs, rows))
    found, start = await answered(speaker, rows), 0
    for place, count in enumerate(rows):
        mine = {name: array[start : start + count] for name, array in inputs.items()}
        start += count
        tensors = [tensor(name, array) for name, array in mine.items()]
        alone = arrays_of((await caller.inference.Predict(pb.PredictRequest(model=model.name, inputs=tensors))).outputs)
        here = found[place]
        assert isinstance(here, dict)
        for name, expected in alone.items():
            np.testing.assert_allclose(here[name], expected, rtol=1e-5, atol=1e-6)


async def test_outputs_come_as_they_are_asked_for(speaker: Speaker, model: model_pb2.Model) -> None:
    last = model.signature.outputs[-1].name
    await speaker.send(predict=frame_of(model, rows_of(model, 2), [], outputs=[last], version=model.version))
    predicted = await speaker.expect("predicted")
    assert [one.name for one in predicted.outputs] == [last]
    assert predicted.version == model.version


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        (lambda f: setattr(f, "model", "nothing"), "MODEL_NOT_FOUND", None),
        (lambda f: setattr(f, "version", 99), "MODEL_NOT_FOUND", None),
        (lambda f: f.outputs.append("nothing"), "BAD_TENSOR", "outputs"),
        (lambda f: f.inputs.append(f.inputs[0]), "BAD_TENSOR", "inputs"),
        (lambda f: setattr(f.inputs[0], "dtype", "int8"), "BAD_TENSOR", None),
        (lambda f: setattr(f.inputs[0], "data", b"1"), "BAD_TENSOR", None),
        (lambda f: f.inputs[0].shape.append(7), "BAD_TENSOR", None),
        (lambda f: setattr(f, "rows", b"123"), "BAD_FRAME", "rows"),
        (lambda f: setattr(f, "rows", u32(1, 2, 3)), "BAD_FRAME", "rows"),
        (lambda f: setattr(f, "parts", 2), "BAD_FRAME", "parts"),
    ],
)
async def test_a_frame_that_cannot_be_read_is_refused_and_the_stream_goes_on(
    speaker: Speaker, model: model_pb2.Model, change: Any, reason: str, field: str | None
) -> None:
    frame = frame_of(model, rows_of(model, 2), [1, 1])
    change(frame)
    await speaker.send(predict=frame)
    refused = await speaker.refused()
    assert refused.reason == reason
    assert field is None or refused.metadata["field"] == field
    await speaker.send(predict=frame_of(model, rows_of(model, 2), [1, 1]))
    assert all(isinstance(one, dict) for one in (await answered(speaker, [1, 1])).values())


async def test_a_model_with_memory_is_not_run_without(speaker: Speaker, subject: Subject) -> None:
    await speaker.send(predict=pb.PredictFrame(model=subject.name))
    assert (await speaker.refused()).reason == "UNSUPPORTED"


async def test_a_number_that_comes_again_is_refused(speaker: Speaker, model: model_pb2.Model) -> None:
    frame = frame_of(model, rows_of(model, 1), [])
    number = await speaker.send(predict=frame)
    await speaker.send(number, predict=frame)
    kinds = {(await speaker.read()).WhichOneof("response") for _ in range(2)}  # type: ignore[union-attr]
    assert kinds == {"predicted", "refused"}


async def test_inputs_in_parts_are_the_same_call(speaker: Speaker, model: model_pb2.Model) -> None:
    """Other frames come between the parts; parts that do not follow end the frame."""
    each = sum(array.nbytes for array in rows_of(model, 1).values())
    inputs = rows_of(model, PART // each + 100)
    cut, whole = Cut(inputs, inputs.values()), frame_of(model, inputs, [], outputs=[model.signature.outputs[0].name])
    head = pb.PredictFrame()
    head.CopyFrom(whole)
    del head.inputs[:]
    head.inputs.extend(cut.tensors())
    head.parts = cut.count
    assert cut.count >= 2
    await speaker.send(predict=whole)
    expected = arrays_of((await speaker.expect("predicted")).outputs)
    number = await speaker.send(predict=head)
    small = await speaker.send(predict=frame_of(model, rows_of(model, 1), []))
    await answered(speaker, [1])
    for part in range(cut.count):
        await speaker.send(number, part=cut.part(part))
    found = arrays_of((await speaker.expect("predicted")).outputs)
    assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items())
    await speaker.send(number, part=cut.part(0))
    assert (await speaker.refused()).metadata["field"] == "frame"
    number = await speaker.send(small + 1, predict=head)
    await speaker.send(number, part=cut.part(1))
    assert (await speaker.refused()).reason == "BAD_FRAME"
    await speaker.send(number, part=cut.part(0))
    assert (await speaker.refused()).metadata["field"] == "frame"


async def test_calls_go_beside_the_steps_of_sessions(
    speaker: Speaker, model: model_pb2.Model, subject: Subject
) -> None:
    """Neither waits for the other, and what was taken is answered before a stream that is half closed ends."""
    await speaker.open_one(fresh_id())
    inputs = subject.random(1)
    sent = 0
    for turn in range(20):
        await speaker.send(predict=frame_of(model, rows_of(model, 8), [1] * 8))
        await speaker.send_chunk([0], [turn], [inputs])
        sent += 8
    await speaker.half_close()
    calls, steps = 0, list[int]()
    while (response := await speaker.read()) is not None:
        if response.WhichOneof("response") == "predicted":
            calls += len(response.predicted.calls) // 4 or 8
            assert not response.predicted.errors
        else:
            steps += np.frombuffer(response.result.positions, "<u8").tolist()
    assert (calls, steps) == (sent, list(range(20)))


async def test_a_stream_that_breaks_leaves_others_alone(channel: Any, subject: Subject, model: model_pb2.Model) -> None:
    async with Speaker(channel, subject.name) as gone, Speaker(channel, subject.name) as stays:
        for _ in range(50):
            await gone.send(predict=frame_of(model, rows_of(model, 64), [1] * 64))
            await stays.send(predict=frame_of(model, rows_of(model, 2), [1, 1]))
        gone._call.cancel()
        for _ in range(50):
            assert len(await answered(stays, [1, 1])) == 2
        await asyncio.sleep(0)
