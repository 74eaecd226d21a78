"""A real server under attack, a victim beside it, and what is read of both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from google.rpc import status_pb2

from statestream.v1 import server_pb2, server_pb2_grpc
from statestream_server.settings import Settings
from tests.support.calls import DEADLINE, Failure, connected, failure_of
from tests.support.serving import TEST_EDGE, Process, process

OURS_ALONE: Final = ("INTERNAL", "UNKNOWN")
"""Codes that say that the server is at fault; nothing that a caller does may bring them out."""
_ROOT = Path(__file__).parents[2]


@dataclass
class Victim:
    """The victim's process."""

    process: asyncio.subprocess.Process

    async def report(self) -> Report:
        """What it saw since the last report."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        line = await asyncio.wait_for(self.process.stdout.readline(), DEADLINE)
        return Report(**json.loads(line))


@dataclass(frozen=True)
class Report:
    """What a victim saw: steps done, what was wrong, and seconds a step took; the last one may be under way."""

    steps: int
    wrong: list[str]
    latencies: list[float]

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Arena:
    """A server, a channel to it, and everything that it answered.

    Attributes:
        server: Its process.
        channel: A channel that takes answers of any size.
        limits: What it says that it takes.
        heard: Failures that it answered.
        streams: Streams and calls that an attack has at once, at most.
        ours: Whether the edge is our own.
        started: Bytes that it had taken before the attack.
    """

    server: Process
    channel: grpc.aio.Channel
    limits: server_pb2.Limits
    victim: Victim
    http: int
    heard: list[Failure] = field(default_factory=list)
    streams: int = 60
    started: int = 0
    ours: bool = False

    def bound(self) -> int:
        """Bytes that the server may take for its callers: the formula of docs/limits.md, for these streams."""
        limits = self.limits
        return (
            2 * limits.max_queued_bytes  # Under way on streams, and in calls beside them.
            + self.streams * 2 * limits.max_message_bytes  # A message that was read, and one on its way.
            + limits.max_replies_bytes
            + (64 << 20)  # Rows, columns, and what allocators keep.
        )

    def hear(self, *failures: Failure) -> None:
        """Notes what was answered."""
        self.heard.extend(failures)

    async def call(self, call: Any) -> Any:
        """What a call answers, or its failure."""
        try:
            return await asyncio.wait_for(call, 60)
        except grpc.aio.AioRpcError as error:
            failure = _failure_of_call(error)
            self.hear(failure)
            return failure

    async def read(self, call: Any, most: int = 10_000) -> list[Any]:
        """What a server stream answers until it ends, fails, or has answered so much."""
        found = list[Any]()
        try:
            async with asyncio.timeout(60):
                while len(found) < most and (answer := await call.read()) is not grpc.aio.EOF:
                    found.append(answer)
        except grpc.aio.AioRpcError as error:
            failure = _failure_of_call(error)
            self.hear(failure)
            found.append(failure)
        return found

    def memory(self) -> tuple[int, int]:
        """Bytes that are resident now, and the most that ever were."""
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        now, most = (re.search(rf"{name}:\s+(\d+)", status) for name in ("VmRSS", "VmHWM"))
        assert now is not None
        assert most is not None
        return int(now[1]) << 10, int(most[1]) << 10

    async def metrics(self) -> dict[str, float]:
        """The server's figures by name and labels."""
        url = f"http://127.0.0.1:{self.http}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=DEADLINE).read().decode())
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    async def lag(self) -> float:
        """Seconds by which a wake-up of the server's loop was late, the most so far."""
        return (await self.metrics())["statestream_loop_lag_most_seconds"]

    async def work(self) -> dict[str, float]:
        """The most rows, errors and bytes that one turn of the server's loop had to do with."""
        found = await self.metrics()
        return {what: found[f"statestream_turn_most_{what}"] for what in ("rows", "errors", "bytes")}

    async def check(self) -> None:
        """The server lives, was never at fault, and the victim has every answer."""
        report = await self.victim.report()
        assert not report.wrong, report.wrong
        fault = [failure for failure in self.heard if failure.code in OURS_ALONE or not failure.reason]
        assert not fault, fault[:3]
        assert "Traceback" not in self.server.output, self.server.output[-4000:]
        work, limits = await self.work(), self.limits
        bounds = {
            "rows": 2 * max(limits.max_frame_chunks, limits.max_frame_sessions),
            "errors": 2 * limits.max_frame_chunks,
            "bytes": 4 * limits.max_message_bytes,
        }
        assert all(work[what] <= bound for what, bound in bounds.items()), (work, bounds)
        assert self.memory()[1] - self.started <= self.bound(), f"{self.memory()[1] >> 20} MiB at most"
        info = server_pb2_grpc.ServerServiceStub(self.channel).GetServerInfo(server_pb2.GetServerInfoRequest())
        assert await asyncio.wait_for(info, DEADLINE)


def _failure_of_call(error: grpc.aio.AioRpcError) -> Failure:
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if details is not None:
        return failure_of(status_pb2.Status.FromString(details))
    code = error.code()
    # A message that is too large, or a deadline, gRPC tells itself.
    reason = "" if code.name in OURS_ALONE else f"gRPC: {code.name}"
    return Failure(code.name, reason, "", error.details() or "", {}, None, [])


def failures_in(rows: Iterable[Any]) -> list[Failure]:
    """The failures of row errors."""
    return [failure_of(row.status) for row in rows]


@contextlib.asynccontextmanager
async def arena(models: Path, *options: str, edge: str = TEST_EDGE) -> AsyncIterator[Arena]:
    """A server of these models that is ready, with its victim stepping."""
    with _process(models, *options, edge=edge) as server:
        http = re.search(r"http://[^:]+:(\d+)/metrics", server.output)
        assert http is not None, server.output
        async with connected(server.address) as channel, _victim(server.address) as victim:
            stub = server_pb2_grpc.ServerServiceStub(channel)
            info = await stub.GetServerInfo(server_pb2.GetServerInfoRequest())
            ours = (edge or Settings(()).edge) == "h2"
            found = Arena(server, channel, info.limits, victim, int(http[1]), ours=ours)
            found.started = found.memory()[1]
            yield found


@contextlib.contextmanager
def _process(models: Path, *options: str, edge: str) -> Iterator[Process]:
    # A store of its own: the usual one is the user's.
    with tempfile.TemporaryDirectory() as folder:
        store = () if "--store" in options else ("--store", f"sqlite:{folder}/sessions.db")
        with process(models, "--http", "--http-port", "0", *store, *options, edge=edge) as server:
            yield server


@contextlib.asynccontextmanager
async def _victim(address: str) -> AsyncIterator[Victim]:
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.attacks.victim",
        address,
        cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    try:
        assert started.stdout is not None
        assert await asyncio.wait_for(started.stdout.readline(), DEADLINE) == b"ready\n"
        yield Victim(started)
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.wait()
