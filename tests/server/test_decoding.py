"""Bytes become messages or reasons: nothing raises, nothing that is heavy is decoded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from hypothesis import given
from hypothesis import strategies as st

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import session_pb2
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.edges.grpc.decoding import MOST_ELEMENTS, TURN_BYTES, DecodeBudget, Unreadable, decoder
from tests.support.arrays import u32
from tests.support.calls import Caller, failing, failure_of
from tests.support.serving import serving
from tests.support.speaker import Speaker

decode_frame = decoder(pb.StreamRequest)


def nested(frame: bytes) -> bytes:
    """A stream request with frame number 9 and these bytes as its chunk frame."""
    size, length = len(frame), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return b"\x08\x09\x1a" + length + bytes([size]) + frame


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_reason(data: bytes) -> None:
    found = decode_frame(data)
    if isinstance(found, Unreadable):
        assert found.error.reason == "BAD_FRAME"
    else:
        assert pb.StreamRequest.FromString(data) == found


@given(st.binary(max_size=40))
def test_any_large_bytes_are_a_message_or_a_reason(tail: bytes) -> None:
    """Above the size from which messages are walked first."""
    large = pb.StreamRequest(frame=3, chunk=pb.ChunkFrame(handles=bytes(1 << 17))).SerializeToString() + tail
    found = decode_frame(large)
    if not isinstance(found, Unreadable):
        assert pb.StreamRequest.FromString(large) == found


def test_columns_may_be_as_long_as_a_message() -> None:
    frame = pb.StreamRequest(frame=1, chunk=pb.ChunkFrame(handles=bytes(8 << 20), inputs=[Tensor(data=bytes(7 << 20))]))
    assert decode_frame(frame.SerializeToString()) == frame


def test_many_elements_are_refused_before_they_are_made() -> None:
    """Empty tensors, ids, and numbers of a shape; the reason says how many there may be, and of which frame it is."""
    for data in (
        nested(b"\x32\x00" * (MOST_ELEMENTS + 1)),
        pb.StreamRequest(frame=9, open=pb.OpenFrame(ids=["a"] * (MOST_ELEMENTS + 1))).SerializeToString(),
        pb.StreamRequest(
            frame=9, chunk=pb.ChunkFrame(inputs=[Tensor(shape=[1] * (16 * MOST_ELEMENTS + 16))])
        ).SerializeToString(),
    ):
        found = decode_frame(data)
        assert isinstance(found, Unreadable)
        assert found.frame == 9
        assert found.error.metadata["max_elements"] == str(MOST_ELEMENTS)


async def test_a_stream_lives_on_after_a_frame_that_is_no_message(models_dir: Path) -> None:
    """It is answered in-band, and what comes before and behind it is answered too."""
    async with serving(models_dir) as local:
        call = local.channel.stream_stream(
            "/statestream.v1.InferenceService/Stream",
            request_serializer=lambda data: data,
            response_deserializer=pb.StreamResponse.FromString,
        )()
        opening = pb.OpenFrame(model="gru", handles=u32(0), ids=["a"], writer=bytes(16), incarnation=1)
        await call.write(b"\xff\xff\xff\xff")
        await call.write(pb.StreamRequest(frame=1, open=opening).SerializeToString())
        refused, opened = await call.read(), await call.read()
        assert failure_of(refused.refused.status).reason == "BAD_FRAME"
        assert opened.WhichOneof("response") == "opened"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_calls_that_arrive_at_once_are_decoded_as_far_as_a_turn_bears_it() -> None:
    """The first of a turn always, small ones always, and in the next turn again."""
    decode = DecodeBudget().bounded(lambda data: pb.PredictRequest())
    large, small = bytes(TURN_BYTES // 2), bytes(10)
    whole = bytes(TURN_BYTES + 1)
    assert [isinstance(decode(data), Unreadable) for data in (large, large, large, small)] == [
        False,
        False,
        True,
        False,
    ]
    refused = decode(large)
    assert isinstance(refused, Unreadable)
    assert (refused.error.reason, refused.error.retry_after) == ("OVERLOADED", 0.1)
    await asyncio.sleep(0)
    assert not isinstance(decode(whole), Unreadable)


async def test_unary_calls_and_server_streams_say_why_too(models_dir: Path) -> None:
    async with serving(models_dir) as local:
        junk = {"request_serializer": lambda data: data, "response_deserializer": lambda data: data}
        step = local.channel.unary_unary("/statestream.v1.InferenceService/Step", **junk)
        failure = await failing(step(b"\xff\xff"))
        assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "BAD_FRAME")
        forecast = local.channel.unary_stream("/statestream.v1.InferenceService/Forecast", **junk)
        assert (await failing(forecast(b"\xff\xff").read())).reason == "BAD_FRAME"
        outputs = await failing(Caller(local.channel).inference.Predict(pb.PredictRequest(outputs=["y"] * 100_000)))
        assert outputs.reason == "BAD_FRAME"
        async with Speaker(local.channel, "gru") as speaker:
            await speaker.open_one("b")
        assert await Caller(local.channel).sessions.GetSession(
            session_pb2.GetSessionRequest(model="gru", session_id="b")
        )
