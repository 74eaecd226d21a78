"""What is done to the server: each attack is one function over an arena, and says what must come of it.

An attack raises where the server answered otherwise than it should. What holds for all of them, that the server lives,
is at fault for nothing, and that its victim has every answer, the arena checks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, session_pb2, session_pb2_grpc
from tests.attacks.arena import Arena, failures_in
from tests.support.arrays import tensor, u32, u64
from tests.support.calls import Failure, connected, failure_of
from tests.support.speaker import Refusal, Speaker, fresh_id, next_incarnation

ONE: Final = {"x": np.ones((1, 1), np.float32)}
"""One step of "counter"."""
_CHUNK = 200
"""Steps of one chunk of a session that is stepped without a pause."""


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        run: Does it.
        options: Of the server.
    """

    run: Callable[[Arena], Coroutine[Any, Any, None]]
    options: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def text(self) -> str:
        return (self.run.__doc__ or "").strip().splitlines()[0]


ATTACKS: list[Attack] = []


def attack(*options: str) -> Callable[[Callable[[Arena], Coroutine[Any, Any, None]]], Callable[[Arena], Any]]:
    """Registers an attack on a server with these options."""

    def register(run: Callable[[Arena], Coroutine[Any, Any, None]]) -> Callable[[Arena], Any]:
        ATTACKS.append(Attack(run, options))
        return run

    return register


# Frames.


@attack()
async def handles_that_stand_for_nothing(found: Arena) -> None:
    """Millions of unknown handles in frames of every kind."""
    count = (found.limits.max_message_bytes - 4096) // 4
    many, fewer = np.arange(1000, 1000 + count, dtype="<u4"), np.arange(1000, 1000 + count // 3, dtype="<u4")
    column = np.zeros(len(fewer), "<u8").tobytes()
    row = [tensor("x", np.ones((1, 1), np.float32))]
    frames: list[dict[str, Any]] = [
        {"close": pb.CloseFrame(handles=many.tobytes())},
        {"flush": pb.FlushFrame(handles=many.tobytes())},
        {"ack": pb.AckFrame(handles=fewer.tobytes(), acked_positions=column)},
        {"chunk": pb.ChunkFrame(handles=fewer.tobytes(), positions=column, steps=1, inputs=row)},
    ]
    async with _speaker(found) as speaker:
        await speaker.open_one(fresh_id())
        for frame in frames:
            await speaker.send(**frame)
        await _goes_on(found, speaker)


@attack()
async def handles_far_apart(found: Arena) -> None:
    """Streams with one session each, under the highest handle."""
    before, _ = found.memory()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            speaker = await stack.enter_async_context(_speaker(found))
            await _hear_opening(found, await speaker.open(fresh_id(), handles=[(1 << 24) - 1]))
        after, _ = found.memory()
        assert after - before < 64 << 20, f"{(after - before) >> 20} MiB for 20 handles"


@attack()
async def every_row_refused(found: Arena) -> None:
    """A frame of thousands of sessions whose new states are all refused, and again."""
    rows = 20_000
    async with _speaker(found) as speaker:
        for first in range(0, rows, 5000):
            handles = range(first, first + 5000)
            await speaker.open(*(f"nan{handle}" for handle in handles), handles=handles)
        poison = [tensor("x", np.full((rows, 1), np.nan, np.float32))]
        for _ in range(2):
            await speaker.send(
                chunk=pb.ChunkFrame(handles=u32(*range(rows)), positions=bytes(8 * rows), steps=1, inputs=poison)
            )
            refused = await speaker.rows(rows)
            assert {row.failure.reason for row in refused if isinstance(row, Refusal)} == {"NON_FINITE_STATE"}


@attack()
async def one_row_refused_again_and_again(found: Arena) -> None:
    """One session sends what the graph itself fails on, round after round, in a batch with others."""
    token, bad = np.ones(64, np.int64), np.asarray([1] * 63 + [1000], np.int64)
    async with _speaker(found, "tokens") as speaker:
        await speaker.open(*(fresh_id() for _ in range(64)))
        positions = np.zeros(64, "<u8")
        for turn in range(30):
            values = bad if turn % 2 == 0 else token
            inputs = [tensor("token", values)]
            await speaker.send(
                chunk=pb.ChunkFrame(
                    handles=u32(*range(64)),
                    positions=positions.tobytes(),
                    acked_positions=positions.tobytes(),
                    steps=1,
                    inputs=inputs,
                )
            )
            rows = await speaker.rows(64)
            refused = [row for row in rows if isinstance(row, Refusal)]
            found.hear(*(row.failure for row in refused))
            assert [row.handle for row in refused] == ([63] if turn % 2 == 0 else [])
            positions += 1
            positions[63] -= turn % 2 == 0


@attack()
async def the_highest_incarnation(found: Arena) -> None:
    """One open with the highest number that the wire can carry, on an id that others use too."""
    name = fresh_id()
    for number in ((1 << 52) - (1 << 40) - 1, (1 << 64) - 1, next_incarnation() + (1 << 45)):
        async with _speaker(found) as speaker:
            frame = pb.OpenFrame(model="counter", handles=u32(0), ids=[name], writer=speaker.writer, incarnation=number)
            await speaker.send(open=frame)
            answer = await speaker.read()
            assert answer is not None
            _hear(found, answer)
    async with _speaker(found) as speaker:
        await speaker.open_one(name)


@attack()
async def frames_that_are_no_messages(found: Arena) -> None:
    """Bytes that cannot be decoded, while answers are being written, on many streams."""

    async def one(number: int) -> None:
        async with connected(found.server.address) as channel:
            call = channel.stream_stream(
                "/statestream.v1.InferenceService/Stream",
                request_serializer=lambda data: data,
                response_deserializer=pb.StreamResponse.FromString,
            )()
            for frame in range(1, 2 + number % 3):
                await call.write(pb.StreamRequest(frame=frame, chunk=pb.ChunkFrame(steps=5)).SerializeToString())
            await call.write(b"\xff" * (1 + number % 7))
            await call.done_writing()
            for answer in await found.read(call):
                if isinstance(answer, pb.StreamResponse):
                    _hear(found, answer)
            # A status comes, whatever was being written.
            assert await asyncio.wait_for(call.code(), 20) is not None

    for _ in range(5):
        await asyncio.gather(*(one(number) for number in range(40)))


# Waits.


@attack()
async def a_session_without_a_pause(found: Arena) -> None:
    """Deletes, snapshots, forks, flushes and opens beside a session that is stepped without a pause."""
    name = fresh_id()
    async with _pipelined(found, "loop", name):
        sessions = session_pb2_grpc.SessionServiceStub(found.channel)
        one: dict[str, Any] = {"model": "loop", "session_id": name}
        for method, request in (
            (sessions.SnapshotSession, session_pb2.SnapshotSessionRequest(**one)),
            (sessions.ForkSession, session_pb2.ForkSessionRequest(**one, fork_id=fresh_id("fork"))),
            (sessions.FlushSession, session_pb2.FlushSessionRequest(**one)),
            (sessions.OpenSession, session_pb2.OpenSessionRequest(model="loop", session_id=fresh_id())),
            (sessions.DeleteSession, session_pb2.DeleteSessionRequest(**one)),
        ):
            assert await asyncio.wait_for(method(request), 20) is not None


@attack()
async def thousands_wait_for_one(found: Arena) -> None:
    """Snapshots by the thousand of a session that is stepped without a pause."""
    name = fresh_id()
    async with _pipelined(found, "counter", name):
        stub = session_pb2_grpc.SessionServiceStub(found.channel)
        request = session_pb2.SnapshotSessionRequest(model="counter", session_id=name)
        answers = await asyncio.gather(*(found.call(stub.SnapshotSession(request)) for _ in range(2000)))
        assert any(not isinstance(answer, Failure) for answer in answers)


@attack()
async def the_same_chunk_again_and_again(found: Arena) -> None:
    """Thousands of repetitions of chunks that are still queued, each with a session more that waits behind them."""
    async with _speaker(found) as speaker:
        await speaker.open(*(fresh_id() for _ in range(200)))
        x = tensor("x", np.ones((2 * _CHUNK, 1), np.float32))
        for turn in range(4000):
            chunk = pb.ChunkFrame(handles=u32(0, 1 + turn % 199), positions=u64(0, 0), steps=_CHUNK, inputs=[x])
            await speaker.send(chunk=chunk)
        assert len(await speaker.answers(8000)) == 8000
        await _goes_on(found, speaker)


@attack()
async def an_open_behind_a_long_queue(found: Arena) -> None:
    """A claim on sessions that have as much queued as their window takes; others open meanwhile."""
    ids, steps = [fresh_id() for _ in range(40)], 256
    x = [tensor("x", np.zeros((len(ids) * steps, 2), np.float32))]
    async with _speaker(found, "loop") as first, _speaker(found, "loop") as second:
        await first.open(*ids)
        for turn in range(64):
            positions = np.full(len(ids), turn * steps, "<u8").tobytes()
            await first.send(
                chunk=pb.ChunkFrame(handles=u32(*range(len(ids))), positions=positions, steps=steps, inputs=x)
            )
        again = asyncio.create_task(second.open(*ids))
        stub = session_pb2_grpc.SessionServiceStub(found.channel)
        for _ in range(3):
            request = session_pb2.OpenSessionRequest(model="counter", session_id=fresh_id())
            await asyncio.wait_for(stub.OpenSession(request), 20)
        await asyncio.wait_for(again, 60)


@attack("--durability", "sync")
async def flushes_without_end(found: Arena) -> None:
    """Flush frames by the ten thousand, whose answers nobody reads."""
    async with connected(found.server.address) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Stream()
        frame = pb.OpenFrame(
            model="counter", handles=u32(0), ids=[fresh_id()], writer=bytes(16), incarnation=next_incarnation()
        )
        await call.write(pb.StreamRequest(frame=1, open=frame))

        async def flood() -> None:
            for number in range(2, 50_000):
                await call.write(pb.StreamRequest(frame=number, flush=pb.FlushFrame(handles=u32(0))))

        with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await asyncio.wait_for(flood(), 5)
        call.cancel()


# Calls.


@attack()
async def one_output_many_times(found: Arena) -> None:
    """Predict names one output by the ten thousand."""
    stub = inference_pb2_grpc.InferenceServiceStub(found.channel)
    rows = [tensor("x", np.zeros((5000, 4), np.float32))]
    answer = await found.call(stub.Predict(pb.PredictRequest(model="scores", inputs=rows, outputs=["scores"] * 40_000)))
    assert isinstance(answer, Failure), f"an answer of {answer.ByteSize()} bytes"
    assert answer.code == "INVALID_ARGUMENT"


@attack()
async def predictions_by_the_gigabyte(found: Arena) -> None:
    """Calls of 16 MB each, all at once, from connections of their own."""
    request = pb.PredictRequest(model="scores", inputs=[tensor("x", np.zeros((990_000, 4), np.float32))])

    async def one() -> None:
        async with connected(found.server.address) as channel:
            await found.call(inference_pb2_grpc.InferenceServiceStub(channel).Predict(request))

    await asyncio.gather(*(one() for _ in range(40)))


@attack()
async def long_texts(found: Arena) -> None:
    """Texts of 15 MB, and many of the longest that is taken."""
    stub = inference_pb2_grpc.InferenceServiceStub(found.channel)
    for size in (15 << 20, 1 << 18, 4096):
        request = pb.GenerateRequest(model="pair", texts=["a" * size], max_tokens=1)
        await asyncio.gather(*(found.read(stub.Generate(request)) for _ in range(2 if size > 1 << 20 else 20)))


@attack()
async def forecasts_of_long_histories(found: Arena) -> None:
    """Twenty histories of 15 MB; live steps go on meanwhile."""
    history = pb.History(inputs=[tensor("x", np.zeros((1, 1_900_000, 2), np.float32))])

    async def one() -> None:
        async with connected(found.server.address) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Forecast(
                pb.ForecastRequest(model="loop", horizon=1, history=history)
            )
            reading = asyncio.create_task(found.read(call))
            await asyncio.wait([reading], timeout=8)
            call.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    await asyncio.gather(*(one() for _ in range(20)))


@attack("--max-sessions", "2000", "--reader-timeout", "1")
async def a_forecast_that_nobody_reads(found: Arena) -> None:
    """A forecast of all rows whose reader takes one answer and stops; the rows come back."""
    series = tensor("x", np.zeros((1900, 1, 2), np.float32))
    large = pb.ForecastRequest(model="loop", horizon=4096, history=pb.History(inputs=[series]))
    small = pb.ForecastRequest(
        model="loop", horizon=2, history=pb.History(inputs=[tensor("x", np.zeros((200, 3, 2), np.float32))])
    )
    async with connected(found.server.address) as channel:
        held = inference_pb2_grpc.InferenceServiceStub(channel).Forecast(large)
        await held.read()
        stub = inference_pb2_grpc.InferenceServiceStub(found.channel)
        async with asyncio.timeout(30):
            while any(  # noqa: ASYNC110  # nobody tells when rows come back
                isinstance(answer, Failure) for answer in await found.read(stub.Forecast(small))
            ):
                await asyncio.sleep(0.2)
        held.cancel()


@attack()
async def errors_that_quote(found: Arena) -> None:
    """Requests whose wrong part is long, and would be quoted in the answer."""
    stub = inference_pb2_grpc.InferenceServiceStub(found.channel)
    sessions = session_pb2_grpc.SessionServiceStub(found.channel)
    for size in (100, 5000, 60_000):
        answers = [
            await found.call(stub.Predict(pb.PredictRequest(model="m" * size))),
            await found.call(stub.Predict(pb.PredictRequest(model="scores", inputs=[pb_tensor("t" * size)]))),
            await found.call(
                sessions.GetSession(session_pb2.GetSessionRequest(model="counter", session_id="i" * size))
            ),
            *await found.read(stub.Generate(pb.GenerateRequest(model="pair", texts=["a" * size + "?"]))),
        ]
        for answer in answers:
            assert isinstance(answer, Failure)
            assert answer.domain == "statestream", answer
            assert len(answer.message) < 4096


@attack()
async def shapes_that_cannot_be(found: Arena) -> None:
    """Tensors of 65 axes, of 2^62 rows, of nothing; tokens and snapshots of nested brackets."""
    stub = inference_pb2_grpc.InferenceServiceStub(found.channel)
    sessions = session_pb2_grpc.SessionServiceStub(found.channel)
    shapes: list[tuple[list[int], bytes]] = [
        ([1] * 65, bytes(4)),
        ([0, 1 << 62, 1 << 62], b""),
        ([-1, 4], bytes(16)),
        ([1 << 31, 4], b""),
        ([], b""),
    ]
    deep = b"[" * 200_000
    snapshot = len(deep).to_bytes(8, "little") + deep
    for shape, data in shapes:
        bad = pb_tensor("x", shape, data)
        answers = [
            await found.call(stub.Predict(pb.PredictRequest(model="scores", inputs=[bad]))),
            await found.call(stub.Step(pb.StepRequest(model="counter", session_id="b", inputs=[bad]))),
            *await found.read(
                stub.Forecast(pb.ForecastRequest(model="loop", horizon=1, history=pb.History(inputs=[bad])))
            ),
        ]
        assert all(isinstance(answer, Failure) and answer.code == "INVALID_ARGUMENT" for answer in answers), answers
    for call in (
        sessions.ListSessions(session_pb2.ListSessionsRequest(page_token="W1tbW1tbW1tb" * 10_000)),
        sessions.RestoreSession(session_pb2.RestoreSessionRequest(model="counter", session_id="r", snapshot=snapshot)),
    ):
        answer = await found.call(call)
        assert isinstance(answer, Failure)
        assert answer.code == "INVALID_ARGUMENT"


# Answers.


@attack()
async def replies_that_nobody_reads(found: Arena) -> None:
    """A stream that steps and never reads, on connections of its own."""

    async def one() -> None:
        async with connected(found.server.address) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Stream()
            frame = pb.OpenFrame(
                model="lstm", handles=u32(0), ids=[fresh_id()], writer=bytes(16), incarnation=next_incarnation()
            )
            await call.write(pb.StreamRequest(frame=1, open=frame))
            x = [tensor("x", np.zeros((256, 3), np.float32))]

            async def flood() -> None:
                for turn in range(5000):
                    position = turn * 256
                    chunk = pb.ChunkFrame(
                        handles=u32(0),
                        positions=u64(position),
                        acked_positions=u64(position),
                        steps=256,
                        inputs=x,
                    )
                    await call.write(pb.StreamRequest(frame=2 + turn, chunk=chunk))

            with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.wait_for(flood(), 5)
            call.cancel()

    await asyncio.gather(*(one() for _ in range(8)))


@attack()
async def callers_that_come_and_go(found: Arena) -> None:
    """Opens that are cancelled, streams that are dropped, calls that are abandoned, by the thousand."""

    async def one(number: int) -> None:
        async with _speaker(found) as speaker:
            opening = asyncio.create_task(speaker.open(fresh_id(), ephemeral=True))
            await asyncio.wait([opening], timeout=0.0005 * (number % 8))
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            stub = inference_pb2_grpc.InferenceServiceStub(speaker.channel)
            inputs = [tensor(name, value) for name, value in ONE.items()]
            step = stub.Step(pb.StepRequest(model="counter", session_id=f"shared{number % 5}", inputs=inputs))
            waiting = asyncio.create_task(found.call(step))
            await asyncio.wait([waiting], timeout=0.0005 * (number % 5))
            step.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    for _ in range(10):
        await asyncio.gather(*(one(number) for number in range(60)))
    found.heard = [failure for failure in found.heard if failure.code != "CANCELLED"]


# What attacks share.


def pb_tensor(name: str, shape: Sequence[int] = (), data: bytes = b"") -> Any:
    """A tensor message as it is told."""
    from statestream.v1.tensor_pb2 import Tensor

    return Tensor(name=name, dtype="float32", shape=shape, data=data)


@contextlib.asynccontextmanager
async def _speaker(found: Arena, model: str = "counter") -> AsyncIterator[Speaker]:
    """A stream on a connection of its own."""
    async with connected(found.server.address) as channel, Speaker(channel, model) as speaker:
        yield speaker


@contextlib.asynccontextmanager
async def _pipelined(found: Arena, model: str, name: str) -> AsyncIterator[None]:
    """A session that is stepped without a pause: eight chunks are always under way."""
    width = {"counter": 1, "loop": 2}[model]
    x = [tensor("x", np.full((_CHUNK, width), 0.1, np.float32))]
    async with _speaker(found, model) as speaker:
        await speaker.open_one(name)
        sent = acked = 0

        async def chunk() -> None:
            nonlocal sent
            await speaker.send(
                chunk=pb.ChunkFrame(
                    handles=u32(0), positions=u64(sent), acked_positions=u64(acked), steps=_CHUNK, inputs=x
                )
            )
            sent += _CHUNK

        async def pump() -> None:
            nonlocal acked
            for _ in range(8):
                await chunk()
            while not isinstance((await speaker.rows(1))[0], Refusal):
                acked += _CHUNK
                await chunk()

        pumping = asyncio.create_task(pump())
        try:
            yield
        finally:
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)


async def _goes_on(found: Arena, speaker: Speaker) -> None:
    """The stream answers until a flush behind everything is answered; what it refused is noted."""
    number = await speaker.send(flush=pb.FlushFrame(handles=u32(0)))
    while True:
        answer = await speaker.read()
        assert answer is not None, "the stream ended"
        _hear(found, answer)
        if answer.frame == number:
            return


async def _hear_opening(found: Arena, opened: dict[int, Any]) -> None:
    found.hear(*(one for one in opened.values() if isinstance(one, Failure)))


def _hear(found: Arena, answer: pb.StreamResponse) -> None:
    kind = answer.WhichOneof("response")
    if kind == "refused":
        found.hear(failure_of(answer.refused.status))
    elif kind is not None:
        found.hear(*failures_in(getattr(getattr(answer, kind), "errors", [])))
