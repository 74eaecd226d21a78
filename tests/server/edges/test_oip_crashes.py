"""SIGKILL under streams of the Open Inference Protocol: what was answered is there, what is sent again is one step."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from statestream_server.edges.grpc.oip import SERVICE
from statestream_server.edges.oip import oip_pb2 as pb
from tests.support import models
from tests.support.calls import DEADLINE, connected
from tests.support.serving import EDGES, process

SEQUENCES, STEPS, KILLS = 12, 40, 2


def infer(sequence: int, position: int, x: np.ndarray, *, counted: bool) -> pb.ModelInferRequest:
    """A step that says where the sequence stands, or has a name of its own."""
    request = pb.ModelInferRequest(model_name="lstm", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1, 3])
    request.parameters["sequence_id"].int64_param = sequence
    request.parameters["sequence_start"].bool_param = position == 0
    if counted:
        request.parameters["sequence_position"].int64_param = position
    else:
        request.id = f"{sequence}/{position}"
    return request


async def drive(channel: Any, sequence: int, xs: np.ndarray, answered: list[bytes], *, counted: bool) -> None:
    """The steps of one sequence from the first on that was not answered."""
    of = pb.ModelInferRequest.SerializeToString, pb.ModelStreamInferResponse.FromString
    call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer", *of)(timeout=DEADLINE)
    while (position := len(answered)) < STEPS:
        await call.write(infer(sequence, position, xs[position], counted=counted))
        response = await call.read()
        if response is grpc.aio.EOF:
            raise ConnectionError(await call.code())
        assert not response.error_message, response.error_message
        answer = response.infer_response
        assert answer.parameters["sequence_position"].int64_param == position + 1
        answered.append(answer.raw_output_contents[0])
    call.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
async def test_streams_go_on_over_sigkill(tmp_path: Path, edge: str) -> None:
    folder = models.write(tmp_path / "models", "lstm")
    draw, xs = random.Random(7), np.random.default_rng(7).standard_normal((SEQUENCES, STEPS, 3)).astype(np.float32)
    made: list[list[bytes]] = [[] for _ in range(SEQUENCES)]
    straight: list[list[bytes]] = [[] for _ in range(SEQUENCES)]
    options = ("--store", f"sqlite:{tmp_path / 'sessions.db'}", "--log-level", "error")
    with process(folder, *options, edge=edge) as server:
        for kill in range(KILLS + 1):
            async with connected(server.address) as channel:
                tasks = [
                    asyncio.create_task(drive(channel, 1 + number, xs[number], made[number], counted=number % 2 == 0))
                    for number in range(SEQUENCES)
                ]
                most = draw.randint(1, SEQUENCES * STEPS // 2) + sum(map(len, made))
                while kill < KILLS and sum(map(len, made)) < min(most, SEQUENCES * STEPS - 1):  # noqa: ASYNC110  # Nobody says it.
                    await asyncio.sleep(0.001)
                if kill < KILLS:
                    server.kill()
                for task in tasks:
                    with contextlib.suppress(*([grpc.aio.AioRpcError, ConnectionError] if kill < KILLS else [])):
                        await task
            if kill < KILLS:
                server.start()
        async with connected(server.address) as channel:
            await asyncio.gather(
                *(drive(channel, 101 + each, xs[each], straight[each], counted=True) for each in range(SEQUENCES))
            )
        assert made == straight
