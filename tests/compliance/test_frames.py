"""Frames that cannot be read: each is answered by `refused`, changes nothing, and the stream lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import server_pb2, server_pb2_grpc
from statestream.v1.tensor_pb2 import Tensor
from tests.support.arrays import length, same_bits, tensor, u32, u64
from tests.support.speaker import Speaker, fresh_id, next_incarnation
from tests.support.subject import Subject


def _good(subject: Subject, steps: int = 2) -> pb.ChunkFrame:
    """A chunk for handle 0 at position 0 that would be applied."""
    inputs = [tensor(name, array) for name, array in subject.random(steps).items()]
    return pb.ChunkFrame(handles=u32(0), positions=u64(0), steps=steps, inputs=inputs)


def _other_dtype(dtype: str) -> str:
    return "float64" if dtype != "float64" else "float32"


def _with(**fields: Any) -> Callable[[pb.ChunkFrame], None]:
    def change(chunk: pb.ChunkFrame) -> None:
        for name, value in fields.items():
            setattr(chunk, name, value)

    return change


def _input(change: Callable[[Tensor], None]) -> Callable[[pb.ChunkFrame], None]:
    return lambda chunk: change(chunk.inputs[0])


def _rename(message: Tensor) -> None:
    message.name = "no-such-input"


def _cut_data(message: Tensor) -> None:
    message.data = message.data[:-1]


def _negative(message: Tensor) -> None:
    message.shape[0] = -message.shape[0]


def _huge(message: Tensor) -> None:
    message.shape[0] = 2**62


def _retype(message: Tensor) -> None:
    other = np.zeros(tuple(message.shape), _other_dtype(message.dtype))
    message.CopyFrom(tensor(message.name, other))


def _unknown_type(message: Tensor) -> None:
    message.dtype = "complex64"


def _another_step(message: Tensor) -> None:
    shape = (message.shape[0] + 1, *list(message.shape)[1:])
    message.CopyFrom(tensor(message.name, np.zeros(shape, message.dtype)))


def _another_axis(message: Tensor) -> None:
    message.CopyFrom(tensor(message.name, np.zeros((*message.shape, 2), message.dtype)))


_CHUNKS: dict[str, tuple[Callable[[pb.ChunkFrame], None], str, str]] = {
    "handles of three bytes": (_with(handles=b"\0\0\0"), "BAD_FRAME", "handles"),
    "a handle twice": (_with(handles=u32(0, 0), positions=u64(0, 0), steps=1), "BAD_FRAME", "handles"),
    "positions too few": (_with(positions=b""), "BAD_FRAME", "positions"),
    "positions too many": (_with(positions=u64(0, 0)), "BAD_FRAME", "positions"),
    "acked positions too many": (_with(acked_positions=u64(0, 0)), "BAD_FRAME", "acked_positions"),
    "lengths too many": (_with(lengths=u32(1, 1)), "BAD_FRAME", "lengths"),
    "lengths with a zero": (_with(lengths=u32(0)), "BAD_FRAME", "lengths"),
    "no steps": (_with(steps=0), "BAD_FRAME", "steps"),
    "no rows": (_with(handles=b"", positions=b""), "BAD_FRAME", "handles"),
    "an unknown input": (_input(_rename), "BAD_TENSOR", "inputs"),
    "no inputs": (lambda chunk: chunk.ClearField("inputs"), "BAD_TENSOR", "inputs"),
    "an input twice": (lambda chunk: chunk.inputs.append(chunk.inputs[0]), "BAD_TENSOR", "inputs"),
    "too few bytes": (_input(_cut_data), "BAD_TENSOR", ""),
    "a negative length": (_input(_negative), "BAD_TENSOR", ""),
    "an enormous length": (_input(_huge), "BAD_TENSOR", ""),
    "another dtype": (_input(_retype), "BAD_TENSOR", ""),
    "a dtype that does not travel": (_input(_unknown_type), "BAD_TENSOR", ""),
    "more steps than said": (_input(_another_step), "BAD_TENSOR", ""),
    "an axis too many": (_input(_another_axis), "BAD_TENSOR", ""),
}


@pytest.mark.parametrize("case", _CHUNKS)
async def test_a_malformed_chunk_frame_is_refused(speaker: Speaker, subject: Subject, case: str) -> None:
    """A chunk frame whose columns or tensors do not fit is refused as a whole, and names the field."""
    change, reason, field = _CHUNKS[case]
    await speaker.open_one(fresh_id())
    chunk = _good(subject)
    change(chunk)
    await speaker.send(chunk=chunk)
    failure = await speaker.refused()
    assert (failure.code, failure.reason, failure.domain) == ("INVALID_ARGUMENT", reason, "statestream")
    assert failure.fields == [field or subject.signature.inputs[0].name]
    await speaker.send(chunk=_good(subject))
    (answer,) = await speaker.answers(1)
    assert answer.end == 2, "the stream lives and the session stands where it stood"


async def test_chunks_above_the_limit_are_refused(speaker: Speaker, subject: Subject) -> None:
    """More steps than `max_chunk_steps` are refused; exactly as many are taken."""
    stub = server_pb2_grpc.ServerServiceStub(speaker.channel)
    most = (await stub.GetServerInfo(server_pb2.GetServerInfoRequest())).limits.max_chunk_steps
    await speaker.open_one(fresh_id())
    await speaker.send_chunk([0], [0], [subject.random(most + 1)])
    failure = await speaker.refused()
    assert (failure.reason, failure.fields) == ("BAD_FRAME", ["steps"])
    assert str(most) in failure.message
    assert (await speaker.step(0, 0, subject.random(most))).end == most


async def test_frame_numbers_must_rise(speaker: Speaker, subject: Subject) -> None:
    """A frame whose number does not exceed the last one's is refused; the numbers before still count."""
    await speaker.open_one(fresh_id())
    inputs = [tensor(name, array) for name, array in subject.random(1).items()]
    chunk = pb.ChunkFrame(handles=u32(0), positions=u64(0), steps=1, inputs=inputs)
    for number in (1, 0):
        await speaker.send(frame=number, chunk=chunk)
        response = await speaker.read()
        assert response is not None
        assert response.WhichOneof("response") == "refused"
        assert response.frame == number
    await speaker.send(frame=10, chunk=chunk)
    (answer,) = await speaker.answers(1)
    assert (answer.frame, answer.end) == (10, 1)


async def test_an_empty_frame_is_refused(speaker: Speaker) -> None:
    """A frame that asks for nothing is refused."""
    await speaker.send()
    failure = await speaker.refused()
    assert (failure.reason, failure.fields) == ("BAD_FRAME", ["request"])


_OPENS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a writer of 15 bytes": ({"writer": b"w" * 15}, "BAD_FRAME", "writer"),
    "no writer": ({"writer": b""}, "BAD_FRAME", "writer"),
    "handles too few": ({"handles": b""}, "BAD_FRAME", "handles"),
    "handles too many": ({"handles": u32(0, 1)}, "BAD_FRAME", "handles"),
    "a handle twice": ({"handles": u32(3, 3), "ids": ["a", "b"]}, "BAD_FRAME", "handles"),
    "an id twice": ({"handles": u32(0, 1), "ids": ["a", "a"]}, "BAD_FRAME", "ids"),
    "an empty id": ({"ids": [""]}, "BAD_FRAME", "ids"),
    "an id of 257 bytes": ({"ids": ["ä" * 128 + "a"]}, "BAD_FRAME", "ids"),
    "epochs too many": ({"seen_epochs": u64(0, 0)}, "BAD_FRAME", "seen_epochs"),
    "replay positions too many": ({"replay_positions": u64(0, 0)}, "BAD_FRAME", "replay_positions"),
    "acked positions of seven bytes": ({"acked_positions": b"\0" * 7}, "BAD_FRAME", "acked_positions"),
    "a mode that does not exist": ({"mode": 9}, "BAD_FRAME", "mode"),
}


@pytest.mark.parametrize("case", _OPENS)
async def test_a_malformed_open_frame_is_refused(speaker: Speaker, case: str) -> None:
    """An open frame whose columns do not fit is refused as a whole and opens nothing."""
    fields, reason, field = _OPENS[case]
    base: dict[str, Any] = {
        "model": speaker.model,
        "handles": u32(0),
        "ids": [fresh_id()],
        "writer": speaker.writer,
        "incarnation": next_incarnation(),
    }
    await speaker.send(open=pb.OpenFrame(**(base | fields)))
    failure = await speaker.refused()
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", reason, [field])
    assert (await speaker.open_one(fresh_id())).position == 0


async def test_an_open_frame_without_rows_opens_nothing(speaker: Speaker) -> None:
    """Every open frame has an answer, also one that asks for no session."""
    assert await speaker.open() == {}
    await speaker.send(open=pb.OpenFrame(model=speaker.model, writer=speaker.writer, incarnation=1))
    assert not (await speaker.expect("opened")).handles


async def test_an_id_of_256_bytes_is_taken(speaker: Speaker) -> None:
    """Ids have up to 256 bytes of UTF-8."""
    name = fresh_id("é" * 100)
    name += "x" * (256 - len(name.encode()))
    assert (await speaker.open_one(name)).created


@pytest.mark.parametrize("model", ["", "no-such-model", "../etc"])
async def test_opening_an_unknown_model_is_refused(speaker: Speaker, model: str) -> None:
    """A model that is not served: MODEL_NOT_FOUND for the frame."""
    await speaker.send(
        open=pb.OpenFrame(model=model, handles=u32(0), ids=[fresh_id()], writer=speaker.writer, incarnation=1)
    )
    failure = await speaker.refused()
    assert (failure.code, failure.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")


@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        ("close", pb.CloseFrame(handles=b"\0\0\0")),
        ("flush", pb.FlushFrame(handles=u32(1, 1))),
        ("ack", pb.AckFrame(handles=u32(0), acked_positions=b"")),
        ("ack", pb.AckFrame(handles=u32(0, 0), acked_positions=u64(0, 0))),
    ],
)
async def test_other_malformed_frames_are_refused(speaker: Speaker, subject: Subject, kind: str, frame: Any) -> None:
    """Close, flush and ack frames obey the same rules about columns."""
    await speaker.open_one(fresh_id())
    await speaker.send(**{kind: frame})
    failure = await speaker.refused()
    assert failure.reason == "BAD_FRAME"
    assert (await speaker.step(0, 0, subject.random(1))).end == 1


async def test_flushing_an_unknown_handle_is_a_row_error(speaker: Speaker) -> None:
    """A flush of a session that is not open here says so in its row."""
    await speaker.open_one(fresh_id())
    await speaker.send(flush=pb.FlushFrame(handles=u32(0, 5)))
    durable = await speaker.expect("durable")
    assert np.frombuffer(durable.handles, "<u4").tolist() == [0]
    assert [row.handle for row in durable.errors] == [5]


async def test_acknowledging_an_unknown_handle_harms_nobody(speaker: Speaker, subject: Subject) -> None:
    """Acks have no answer; one for a handle that stands for nothing is ignored."""
    await speaker.open_one(fresh_id())
    await speaker.send_ack(2_000_000, 5)
    await speaker.step(0, 0, subject.random(1))


async def test_handles_far_apart_are_told_apart(speaker: Speaker, subject: Subject) -> None:
    """Handles need not be dense."""
    handles = [0, 70, 5000, 100_000]
    await speaker.open(*(fresh_id() for _ in handles), handles=handles)
    chunks = [subject.random(2, seed) for seed in range(4)]
    await speaker.send_chunk(handles, [0] * 4, chunks)
    rows = {answer.handle: answer for answer in await speaker.answers(4)}
    assert sorted(rows) == handles
    assert not same_bits(rows[0].outputs, rows[70].outputs)
    assert all(length(answer.outputs) == 2 for answer in rows.values())
