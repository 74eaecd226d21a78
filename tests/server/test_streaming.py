"""Streaming equals the model's whole-sequence forward, for any cut into chunks and any company."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import models
from tests.support.arrays import cut, length
from tests.support.serving import Local, serving
from tests.support.speaker import Answer, Speaker, fresh_id, joined
from tests.support.subject import random_steps

MODELS = ("lstm", "gru", "counter", "tokens")


@dataclass(frozen=True)
class Plan:
    """What is sent: each session's chunks, and the frames in which they travel.

    Attributes:
        model: The model of all sessions.
        chunks: For each session the steps of its chunks.
        stream_of: For each session its stream.
        frames: For each frame the sessions whose next chunk it carries; all of one stream.
        seed: Makes the inputs.
    """

    model: str
    chunks: list[list[int]]
    stream_of: list[int]
    frames: list[list[int]]
    seed: int


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    lengths = st.one_of(st.integers(1, 9), st.sampled_from([16, 31, 64, 100, 256]))
    chunks = draw(st.lists(st.lists(lengths, min_size=1, max_size=6), min_size=1, max_size=5))
    stream_of = draw(st.lists(st.integers(0, 2), min_size=len(chunks), max_size=len(chunks)))
    left, frames = [len(lengths) for lengths in chunks], list[list[int]]()
    while any(left):
        stream = draw(st.sampled_from(sorted({s for s, n in zip(stream_of, left, strict=True) if n})))
        able = [i for i, n in enumerate(left) if n and stream_of[i] == stream]
        frame = draw(st.lists(st.sampled_from(able), min_size=1, unique=True))
        for session in frame:
            left[session] -= 1
        frames.append(frame)
    return Plan(draw(st.sampled_from(MODELS)), chunks, stream_of, frames, draw(st.integers(0, 2**32)))


async def streamed(local: Local, plan: Plan, inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Sends everything without waiting for anything; the outputs of each session."""
    async with AsyncExitStack() as stack:
        streams = sorted(set(plan.stream_of))
        speakers = {s: await stack.enter_async_context(Speaker(local.channel, plan.model)) for s in streams}
        for stream, speaker in speakers.items():
            mine = [i for i, s in enumerate(plan.stream_of) if s == stream]
            await speaker.open(*(fresh_id() for _ in mine), handles=mine)
        at, turn = [0] * len(inputs), [0] * len(inputs)
        for frame in plan.frames:
            parts = []
            for session in frame:
                steps = plan.chunks[session][turn[session]]
                parts.append(cut(inputs[session], at[session], at[session] + steps))
            await speakers[plan.stream_of[frame[0]]].send_chunk(frame, [at[session] for session in frame], parts)
            for session, part in zip(frame, parts, strict=True):
                at[session] += length(part)
                turn[session] += 1
        answers: dict[int, list[Answer]] = {session: [] for session in range(len(inputs))}
        for stream, speaker in speakers.items():
            expected = sum(len(plan.chunks[i]) for i, s in enumerate(plan.stream_of) if s == stream)
            for answer in await speaker.answers(expected):
                answers[answer.handle].append(answer)
        for speaker in speakers.values():
            await speaker.close(*range(len(inputs)), delete=True)
        return [joined(found) for found in answers.values()]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(plan=plans())
async def test_streaming_equals_the_whole_sequence(local: Local, plan: Plan) -> None:
    """Any chunks, ragged frames, several streams: the outputs of ONNX Runtime on each sequence alone.

    Within rounding of one run over the whole sequence, and in every bit equal to one step after the other.
    """
    whole = models.Whole(local.server.settings.models[0] / plan.model / "1" / "model.onnx")
    rng = np.random.default_rng(plan.seed)
    inputs = [
        {spec.name: random_steps(spec, sum(chunks), rng) for spec in whole.signature.inputs} for chunks in plan.chunks
    ]
    found = await streamed(local, plan, inputs)
    for sequence, outputs in zip(inputs, found, strict=True):
        expected = whole.run(sequence)["y"]
        scale = max(float(np.abs(expected).max()), 1.0)
        np.testing.assert_allclose(outputs["y"], expected, rtol=1e-5, atol=1e-5 * scale)
        states, steps = whole.start(), []
        for step in range(length(sequence)):
            one, states = whole.run_from(cut(sequence, step, step + 1), states)
            steps.append(one["y"])
        assert outputs["y"].tobytes() == np.concatenate(steps).tobytes()
    assert local.server.engine.queued == 0
    assert local.server.engine.queued_bytes == 0


async def test_many_tasks_share_batches(local: Local) -> None:
    """A hundred streams with one session each are batched, and each has its own memory."""
    whole = models.Whole(local.server.settings.models[0] / "gru" / "1" / "model.onnx")
    rng = np.random.default_rng(1)
    inputs = [{"x": rng.standard_normal((12, 2)).astype(np.float32)} for _ in range(40)]

    async def one(sequence: dict[str, np.ndarray]) -> np.ndarray:
        async with Speaker(local.channel, "gru") as speaker:
            await speaker.open_one(fresh_id())
            return joined([await speaker.step(0, at, cut(sequence, at, at + 1)) for at in range(12)])["y"]

    before = local.server.engine.statistics.batches
    found = await asyncio.gather(*(one(sequence) for sequence in inputs))
    for sequence, outputs in zip(inputs, found, strict=True):
        np.testing.assert_allclose(outputs, whole.run(sequence)["y"], rtol=1e-5, atol=1e-5)
    assert local.server.engine.statistics.batches - before < 40 * 12, "rows that wait together run together"


async def test_an_exported_lstm_streams_as_torch_computes_it(tmp_path: Path) -> None:
    """From nn.LSTM through the exporter and the server: torch's own forward over the whole sequence."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("statestream_export")
    from statestream_export import State, export
    from tests.export.modules import Layered

    torch.manual_seed(3)
    module = Layered(torch.nn.LSTM).eval()
    file = tmp_path / "layered" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    state = State(torch.zeros(2, 1, 6), batch_axis=1)
    export(module, torch.randn(1, 4, 3), states={"h": state, "c": state}, time_axis=1, path=file)
    lengths = [[1, 2, 30, 7], [40], [5] * 8]
    x = torch.randn(3, 40, 3)
    with torch.no_grad():
        expected = module(x, torch.zeros(2, 3, 6), torch.zeros(2, 3, 6))[0].numpy()
    async with serving(tmp_path) as local:
        frames = [[0, 1, 2], [0, 2], [2, 0], [0, 2], [2], [2], [2], [2]]
        plan = Plan("layered", lengths, [0, 0, 0], frames, 0)
        (name,) = [spec.name for spec in local.server.registry.get("layered").model.signature.inputs]
        found = await streamed(local, plan, [{name: sequence} for sequence in x.numpy()])
    for outputs, wanted in zip(found, expected, strict=True):
        (y,) = outputs.values()
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5 * max(np.abs(wanted).max(), 1))
