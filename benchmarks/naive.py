"""What one writes first: a bidirectional handler that keeps its own state and runs batch 1 per message.

`python -m benchmarks.naive PORT MODEL.onnx`
"""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import uvloop

from benchmarks.raw import open_graph, start_states

METHOD = "/benchmarks.Naive/Stream"


async def serve(port: int, path: str) -> None:
    """Serves until the process ends."""
    graph = open_graph(path)
    loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(1)

    async def handle(_request: Any, context: Any) -> None:
        states = start_states(graph, 1)
        while (message := await context.read()) is not grpc.aio.EOF:
            x = np.frombuffer(message, np.float32).reshape(1, 1, -1)
            y, *new = await loop.run_in_executor(pool, graph.run, None, {"x": x, **states})
            states = dict(zip(states, new, strict=True))
            await context.write(y.tobytes())

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler: Any = grpc.stream_stream_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmarks.Naive", {"Stream": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


async def steps_per_second(port: int, streams: int, seconds: float, features: int) -> tuple[float, list[float]]:
    """Streams in closed loop, one step a message: steps a second, and every round trip in seconds."""
    trips, payload = list[float](), np.ones(features, np.float32).tobytes()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        end = time.perf_counter() + seconds

        async def one() -> None:
            call: Any = channel.stream_stream(METHOD)()
            while (start := time.perf_counter()) < end:
                await call.write(payload)
                await call.read()
                trips.append(time.perf_counter() - start)
            await call.done_writing()

        await asyncio.gather(*(one() for _ in range(streams)))
    return len(trips) / seconds, trips


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1]), sys.argv[2]))
