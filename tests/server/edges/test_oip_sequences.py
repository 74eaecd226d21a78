"""Sequences of the Open Inference Protocol over both edges: the usual requests meet in one batch, each in its order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from statestream.contract import errors
from statestream_server.edges.grpc.oip import SERVICE
from statestream_server.edges.oip import oip_pb2 as pb
from statestream_server.edges.oip.inference import Inference
from statestream_server.edges.oip.sequences import Sequences
from tests.support import serving
from tests.support.calls import DEADLINE, failing
from tests.support.serving import Local

MODEL = "counter"


@pytest.fixture(params=serving.EDGES)
async def local(models_dir: Path, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Local]:
    """A server of each edge, with a store that outlives it and that nobody writes to unless somebody waits for it."""
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    async with serving.serving(models_dir, store=store, checkpoint_interval=60.0, edge=request.param) as local:
        yield local


def infer(sequence: int | str, value: float, *, start: bool = False, **more: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[np.float32(value).tobytes()], **more)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    named = request.parameters["sequence_id"]
    if isinstance(sequence, str):
        named.string_param = sequence
    else:
        named.int64_param = sequence
    request.parameters["sequence_start"].bool_param = start
    return request


def unary(local: Local, request: pb.ModelInferRequest) -> Any:
    serialize, parse = pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
    return local.channel.unary_unary(f"/{SERVICE}/ModelInfer", serialize, parse)(request, timeout=DEADLINE)


def stream(local: Local) -> Any:
    serialize, parse = pb.ModelInferRequest.SerializeToString, pb.ModelStreamInferResponse.FromString
    return local.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer", serialize, parse)(timeout=DEADLINE)


def y(response: pb.ModelInferResponse) -> float:
    assert [output.name for output in response.outputs] == ["y"]
    assert list(response.outputs[0].shape) == [1, 1]
    return float(np.frombuffer(response.raw_output_contents[0], np.float32)[0])


@pytest.fixture
async def started(local: Local, monkeypatch: pytest.MonkeyPatch) -> Local:
    """Sequences 1, 2 and "c" started; from now on no request goes the long way."""
    await asyncio.gather(*(unary(local, infer(sequence, 1, start=True)) for sequence in (1, 2, "c")))

    async def long(*_: Any, **__: Any) -> None:
        raise AssertionError("a request as usual went the long way")

    monkeypatch.setattr(Inference, "_step", long)
    return local


async def test_unary_requests_are_answered_as_the_long_way_does(started: Local) -> None:
    requests = [infer(1, 2, id="a"), infer(2, 3, model_version="1"), infer("c", 4)]
    requests[0].outputs.add(name="y")
    requests[2].parameters["sequence_position"].int64_param = 1
    answers = await asyncio.gather(*(unary(started, request) for request in requests))
    assert [y(answer) for answer in answers] == [3, 4, 5]
    assert [(answer.model_name, answer.model_version, answer.id) for answer in answers] == [
        (MODEL, "1", "a"),
        (MODEL, "1", ""),
        (MODEL, "1", ""),
    ]
    assert [answer.parameters["sequence_id"].int64_param for answer in answers[:2]] == [1, 2]
    assert answers[2].parameters["sequence_id"].string_param == "c"
    assert [answer.parameters["sequence_position"].int64_param for answer in answers] == [2, 2, 2]
    table = started.table(MODEL)
    assert [int(table.durable[table.rows_of("")[name]]) for name in ("1", "2", "c")] == [2, 2, 2]
    assert not started.server.budgets.steps.held


async def test_requests_of_a_stream_keep_the_order_of_their_sequences(started: Local) -> None:
    """However many of one sequence come at once; what the client sent is answered although it half-closed."""
    call, sent = stream(started), 0
    for value in range(1, 9):
        for sequence in (1, 2, "c"):
            await call.write(infer(sequence, value, id=f"{sequence}/{value}"))
            sent += 1
    await call.done_writing()
    answers = [answer async for answer in call]
    assert not [answer.error_message for answer in answers if answer.error_message]
    assert len(answers) == sent
    for sequence in ("1", "2", "c"):
        mine = [each.infer_response for each in answers if each.infer_response.id.split("/")[0] == sequence]
        assert [y(answer) for answer in mine] == [1 + sum(range(1, value + 1)) for value in range(1, 9)]
    assert not started.server.accounts.held


async def test_an_error_is_told_in_the_stream_which_goes_on(local: Local) -> None:
    await unary(local, infer(1, 1, start=True))
    call = stream(local)
    answers = []
    for request in (infer(1, np.nan, id="nan"), infer(9, 1, id="none"), infer(1, 2, id="well")):
        await call.write(request)
        answers.append(await call.read())
    assert [answer.error_message.split(":")[0] for answer in answers] == ["NON_FINITE_STATE", "BAD_FRAME", ""]
    assert [answer.infer_response.id for answer in answers] == ["nan", "none", "well"]
    assert y(answers[2].infer_response) == 3
    call.cancel()
    await local.until(lambda: not local.server.accounts.held)


async def test_a_stream_that_is_given_up_leaves_nothing(started: Local) -> None:
    """What it sent is applied all the same."""
    call, table = stream(started), started.table(MODEL)
    with started.engine_held():
        for sequence in (1, 2, 1):
            await call.write(infer(sequence, 2))
        await started.until(lambda: started.server.engine.queued == 2)
        call.cancel()
        await asyncio.sleep(0.05)  # The server hears of it.
    await started.until(lambda: not started.server.accounts.held and not started.server.budgets.steps.held)
    assert int(table.position[table.rows_of("")["2"]]) == 2


async def test_a_sequence_that_goes_before_its_request_runs_is_not_stepped(started: Local) -> None:
    table, engine = started.table(MODEL), started.server.engine
    row = np.asarray([table.rows_of("")["1"]])
    turn, engine._turn = engine._turn, lambda: None
    once, call = unary(started, infer(1, 2)), stream(started)
    await started.until(lambda: started.server.budgets.steps.held)
    await call.write(infer(2, 2))
    started.server.evictions.drop(table, row, errors.SessionMoved("another server took the session over"))
    engine._turn = turn
    turn()
    assert (await failing(once)).reason == "SESSION_MOVED"
    assert y((await call.read()).infer_response) == 3
    call.cancel()


@pytest.mark.parametrize(
    "wrong",
    [
        {"datatype": "FP64"},
        {"name": "z"},
        {"shape": [1, 2]},
        {"shape": [2, 1]},
        {"shape": []},
        {"shape": [-1, 1]},
    ],
)
async def test_what_does_not_fit_is_refused_as_ever(local: Local, wrong: dict[str, Any]) -> None:
    await unary(local, infer(1, 1, start=True))
    request = infer(1, 2)
    request.inputs[0].CopyFrom(
        pb.ModelInferRequest.InferInputTensor(**({"name": "x", "datatype": "FP32", "shape": [1, 1]} | wrong))
    )
    assert (await failing(unary(local, request))).reason == "BAD_TENSOR"
    for more in ("sequence_ends", "shared_memory_region"):
        request = infer(1, 2)
        request.parameters[more].bool_param = True
        assert (await failing(unary(local, request))).reason == "BAD_FRAME"
    assert y(await unary(local, infer(1, 2))) == 3
    with pytest.raises(grpc.aio.AioRpcError):
        await unary(local, _without_raw())


def _without_raw() -> pb.ModelInferRequest:
    request = infer(1, 2)
    del request.raw_input_contents[:]
    return request


async def test_requests_like_those_before_are_known_by_their_bytes(
    started: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their contents, id and position; none of them is decoded, and what is wrong is told as ever."""
    call, counted = stream(started), infer("c", 1)
    counted.parameters["sequence_position"].int64_param = 1
    for request in (infer(1, 1), infer(2, 1, id="first"), counted):
        await call.write(request)
        assert not (await call.read()).error_message

    def take(self: Sequences, request: pb.ModelInferRequest, *_: Any) -> bool:
        assert request.id not in ("known", "")
        return False

    monkeypatch.setattr(Sequences, "take", take)
    for round_, name in enumerate(("", "known", "known")):
        requests = [infer(1, 2), infer(2, 3), infer("c", 4)]
        requests[1].id = name
        requests[2].id = name
        requests[2].parameters["sequence_position"].int64_param = 2 + round_
        wanted = [2 + 2 * (round_ + 1), 2 + 3 * (round_ + 1), 2 + 4 * (round_ + 1)]
        if round_ == 2:  # A name that comes twice is a step that was sent again, which goes the long way.
            requests, wanted = requests[::2], wanted[::2]
        for request in requests:
            await call.write(request)
        answers = [(await call.read()).infer_response for _ in requests]
        assert sorted(map(y, answers)) == wanted
        assert {answer.id for answer in answers} <= {"", name}
        assert {answer.parameters["sequence_position"].int64_param for answer in answers} == {3 + round_}
    await call.write(infer(1, np.nan))
    assert (await call.read()).error_message.startswith("NON_FINITE_STATE")
    await call.write(infer(1, 1))
    assert y((await call.read()).infer_response) == 9
    call.cancel()
    await started.until(lambda: not started.server.accounts.held)


async def test_a_known_request_of_a_session_that_left_goes_the_long_way(local: Local) -> None:
    """By its row alone it would step whoever has that now."""
    call, table = stream(local), local.table(MODEL)
    for request in (infer(1, 1, start=True), infer(1, 1), infer(1, 1)):
        await call.write(request)
        await call.read()
    row = table.rows_of("")["1"]
    local.server.evictions.drop(table, np.asarray([row]), errors.SessionMoved("another server took the session over"))
    await call.write(infer(9, 5, start=True))
    assert y((await call.read()).infer_response) == 5
    await call.write(infer(1, 1))
    answer = await call.read()
    assert y(answer.infer_response) == 4, "from the store"
    await call.write(infer(9, 5))
    assert y((await call.read()).infer_response) == 10
    call.cancel()
