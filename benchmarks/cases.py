"""What is measured: each case gives ours and what it is compared with, from the same minute on the same cores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

import statestream
from benchmarks import echo, naive, raw
from benchmarks.processes import Process
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as stubs
from statestream.v1.tensor_pb2 import Tensor

FEATURES = 8
AHEAD = 3
"""Frames under way where a pool does not wait for each answer: one at the server, one on its way, one in the making."""


@dataclass(frozen=True)
class Bench:
    """The servers of one run and where the models are."""

    ours: Process
    echo: Process
    naive: Process
    models: Path

    def model(self, name: str) -> str:
        return str(self.models / name / "1" / "model.onnx")


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine on uvloop, which both sides of every comparison use."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def pool(bench: Bench, model: str, sessions: int, steps: int, seconds: float, *, ahead: int = 1) -> float:
    """Steps a second of a pool with so many frames under way; with one, each frame waits for the answer before it."""
    shape = (sessions, FEATURES) if steps == 1 else (sessions, steps, FEATURES)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with statestream.connect(bench.ours.address) as client, client.sessions(model, sessions) as sessions_pool:
        for _ in range(5):
            sessions_pool.step(x)
        start, frames = time.perf_counter(), 0

        def feed() -> Iterator[np.ndarray]:
            while time.perf_counter() - start < seconds:
                yield x

        for _ in sessions_pool.stream(feed(), ahead=ahead):
            frames += 1
        return frames * sessions * steps / (time.perf_counter() - start)


def predict(bench: Bench, x: np.ndarray, seconds: float, *, model: str = "convnet") -> float:
    """Images a second through predict, four calls at a time of the images x."""

    async def main() -> float:
        async with statestream.aio.connect(bench.ours.address) as client:
            await client.predict(model, x)
            count, start = 0, time.perf_counter()

            async def one() -> None:
                nonlocal count
                while time.perf_counter() - start < seconds:
                    await client.predict(model, x)
                    count += len(x)

            await asyncio.gather(*(one() for _ in range(4)))
            return count / (time.perf_counter() - start)

    return float(run(main()))


def images(batch: int) -> np.ndarray:
    """What the convnet is asked: [batch, 1, 28, 28]."""
    return np.random.default_rng(0).normal(size=(batch, 1, 28, 28)).astype(np.float32)


def predict_raw(bench: Bench, x: np.ndarray, seconds: float) -> float:
    """Images a second of raw ONNX Runtime."""
    return raw.calls_per_second(bench.model("convnet"), x, seconds)


def awaits(bench: Bench, tasks: int, seconds: float) -> float:
    """Steps a second of asyncio tasks that each await single steps of their own session."""

    async def main() -> float:
        x = np.ones(FEATURES, np.float32)
        async with statestream.aio.connect(bench.ours.address) as client:
            sessions = await asyncio.gather(*(client.session("lstm").__aenter__() for _ in range(tasks)))
            count, start = 0, time.perf_counter()

            async def one(session: Any) -> None:
                nonlocal count
                while time.perf_counter() - start < seconds:
                    await session.step(x)
                    count += 1

            await asyncio.gather(*(one(session) for session in sessions))
            passed = time.perf_counter() - start
            await asyncio.gather(*(session.delete() for session in sessions))
            return count / passed

    return float(run(main()))


def round_trips(bench: Bench, seconds: float) -> np.ndarray:
    """Seconds of every step of one session that has the server to itself."""

    async def main() -> np.ndarray:
        x, trips = np.ones(FEATURES, np.float32), list[float]()
        async with statestream.aio.connect(bench.ours.address) as client, client.session("lstm") as session:
            end = time.perf_counter() + seconds
            while (start := time.perf_counter()) < end:
                await session.step(x)
                trips.append(time.perf_counter() - start)
        return np.asarray(trips)

    return np.asarray(run(main()))


def echo_round_trips(bench: Bench, seconds: float) -> np.ndarray:
    """Seconds of every round trip of the bare echo."""
    return np.asarray(run(echo.messages_per_second(bench.echo.port, 1, seconds, bytes(64)))[1])


def echo_rate(bench: Bench, seconds: float) -> float:
    """Messages a second of the bare echo with 256 streams."""
    return float(run(echo.messages_per_second(bench.echo.port, 256, seconds, bytes(64)))[0])


def naive_rate(bench: Bench, seconds: float) -> float:
    """Steps a second of the first attempt with 256 streams."""
    return float(run(naive.steps_per_second(bench.naive.port, 256, seconds, FEATURES))[0])


def naive_round_trips(bench: Bench, seconds: float) -> np.ndarray:
    """Seconds of every step of the first attempt with one stream."""
    return np.asarray(run(naive.steps_per_second(bench.naive.port, 1, seconds, FEATURES))[1])


def streams(bench: Bench, count: int, seconds: float) -> tuple[float, np.ndarray]:
    """Sessions that have a stream each, in closed loop, spoken without our client: steps a second, and every round trip
    in seconds."""

    async def main() -> tuple[float, np.ndarray]:
        trips, end, opened = list[float](), 0.0, asyncio.Barrier(count)
        async with grpc.aio.insecure_channel(bench.ours.address) as channel:
            stub = stubs.InferenceServiceStub(channel)

            async def one(number: int) -> None:
                nonlocal end
                call, handle = stub.Stream(), (0).to_bytes(4, "little")
                opening = pb.OpenFrame(
                    model="lstm",
                    handles=handle,
                    ids=[f"stream-{number}-{time.time_ns()}"],
                    writer=number.to_bytes(16, "little"),
                    incarnation=1,
                    ephemeral=True,
                )
                await call.write(pb.StreamRequest(frame=1, open=opening))
                await call.read()
                x = Tensor(name="x", dtype="float32", shape=[1, FEATURES], data=bytes(4 * FEATURES))
                # One message for all steps: what is measured is the server.
                chunk = pb.ChunkFrame(handles=handle, steps=1, inputs=[x])
                request = pb.StreamRequest(frame=1, chunk=chunk)
                frame, position = 1, 0
                await opened.wait()  # The clock starts when all are.
                end = end or time.perf_counter() + seconds
                while (start := time.perf_counter()) < end:
                    frame += 1
                    request.frame = frame
                    request.chunk.positions = request.chunk.acked_positions = position.to_bytes(8, "little")
                    await call.write(request)
                    while not (await call.read()).HasField("result"):
                        pass
                    position += 1
                    trips.append(time.perf_counter() - start)
                close = pb.CloseFrame(handles=handle, action=pb.CLOSE_ACTION_DELETE)
                await call.write(pb.StreamRequest(frame=frame + 1, close=close))
                await call.done_writing()
                while await call.read() is not grpc.aio.EOF:
                    pass

            await asyncio.gather(*(one(number) for number in range(count)))
        return len(trips) / seconds, np.asarray(trips)

    rate, trips = run(main())
    return float(rate), np.asarray(trips)


def open_and_close(bench: Bench, count: int) -> tuple[float, float]:
    """Sessions opened a second and closed a second, in bulk."""
    with statestream.connect(bench.ours.address) as client:
        start = time.perf_counter()
        sessions = client.sessions("lstm", count)
        sessions.__enter__()
        opened = time.perf_counter()
        sessions.__exit__(None, None, None)
        return count / (opened - start), count / (time.perf_counter() - opened)


def trips_beside(bench: Bench, rate: float, seconds: float, *, chunks: bool) -> np.ndarray:
    """Seconds of every single step at a given rate, while another session sends full chunks, or nobody does."""

    async def main() -> np.ndarray:
        x, trips = np.ones(FEATURES, np.float32), list[float]()
        full = np.ones((256, FEATURES), np.float32)
        async with (
            statestream.aio.connect(bench.ours.address) as client,
            statestream.aio.connect(bench.ours.address) as other,
        ):
            sessions = await asyncio.gather(*(client.session("lstm").__aenter__() for _ in range(64)))
            end = time.perf_counter() + seconds

            async def push() -> None:
                async with other.session("lstm") as session:
                    while time.perf_counter() < end:
                        await session.step(full)

            async def one(session: Any, number: int) -> None:
                due = time.perf_counter() + number / rate
                while due < end:
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    start = time.perf_counter()
                    await session.step(x)
                    trips.append(time.perf_counter() - start)
                    due += len(sessions) / rate

            work: list[Awaitable[None]] = [one(session, number) for number, session in enumerate(sessions)]
            await asyncio.gather(*work, *([push()] if chunks else []))
            await asyncio.gather(*(session.delete() for session in sessions))
        return np.asarray(trips)

    return np.asarray(run(main()))
