"""A bare grpc.aio echo, of streams and of calls: the floor under any streaming server in Python.

`python -m benchmarks.echo PORT`
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import grpc
import uvloop

METHOD = "/benchmarks.Echo/Stream"
UNARY = "/benchmarks.Echo/Call"


async def _echo(_request: Any, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


async def _answer(request: Any, _context: Any) -> Any:
    return request


async def serve(port: int) -> None:
    """Echoes until the process ends."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler: Any = grpc.stream_stream_rpc_method_handler(_echo)
    unary: Any = grpc.unary_unary_rpc_method_handler(_answer)
    handlers = {"Stream": handler, "Call": unary}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmarks.Echo", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


async def messages_per_second(port: int, streams: int, seconds: float, payload: bytes) -> tuple[float, list[float]]:
    """Streams in closed loop on one channel: messages a second, and every round trip in seconds."""
    trips = list[float]()
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
        runner.run(serve(int(sys.argv[1])))
