"""The Node client of examples/node: its types, its page, and what it must not lose over killed and drained replicas."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from statestream import aio
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.conftest import models, oracle, scaled, seed
from tests.chaos.oracle import MODEL, OUTPUTS, Oracle, Track, inputs
from tests.support import node

__all__ = ["models", "oracle", "scaled", "seed"]
Scaled = Callable[[int, int], int]


@dataclass
class Drive:
    """`node files.js` over a folder with the inputs of some sessions.

    Attributes:
        steps: The outputs that it has written, all runs together.
    """

    addresses: list[str]
    folder: Path
    sessions: int
    seed: int
    steps: int = 0
    before: int = 0
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    said: list[str] = field(default_factory=list)

    def write(self, steps: int) -> None:
        """Writes the inputs, so many steps of each session."""
        self.folder.mkdir()
        for number in range(self.sessions):
            (self.folder / f"{self.name(number)}.in").write_bytes(inputs(self.seed, number, 0, steps).tobytes())

    def name(self, number: int) -> str:
        return f"node-{number:04}"

    async def start(self) -> None:
        """Starts it; it is one process at a time."""
        self.before = self.steps
        # Another address first each time.
        self.addresses.append(self.addresses.pop(0))
        self.process = await asyncio.create_subprocess_exec(
            *("node", str(node.installed() / "files.js"), ",".join(self.addresses), MODEL, str(self.folder), "mixed"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self.news:
                text = line.decode()
                if text.strip().isdigit():
                    self.steps = self.before + int(text)
                else:
                    self.said.append(text)
                self.news.notify_all()
        async with self.news:
            self.news.notify_all()

    async def progress(self, steps: int) -> None:
        """Waits until it has written so many more outputs."""
        wanted = self.steps + steps
        async with asyncio.timeout(60), self.news:
            await self.news.wait_for(lambda: self.steps >= wanted or self.reader.done())
        assert self.process.returncode is None, "".join(self.said)

    async def kill(self) -> None:
        """SIGKILL: it says nothing any more, and saves nothing."""
        self.process.kill()
        await self.process.wait()
        await self.reader

    async def stop(self) -> None:
        """Ctrl-C: it closes its sessions and ends."""
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(90):
            status = await self.process.wait()
            await self.reader
        assert status == 0, "".join(self.said)

    def tracks(self) -> list[Track]:
        """What is in its files."""
        found = []
        for number in range(self.sessions):
            track = Track(number, self.name(number))
            file = self.folder / f"{track.id}.out"
            track.took(np.frombuffer(file.read_bytes(), np.float32).reshape(-1, OUTPUTS), 0.0)
            found.append(track)
        return found


async def _verify(drive: Drive, oracle: Oracle, made: Cluster) -> int:
    """Compares its files with ONNX Runtime's outputs, and with where the sessions stand; how many outputs that were."""
    tracks = drive.tracks()
    checked = oracle.check(tracks)
    async with aio.connect(",".join(made.addresses)) as client:
        pool = await client.sessions(MODEL, ids=[track.id for track in tracks], mode="resume")
        assert pool.positions.tolist() == [track.position for track in tracks]
    return checked


async def _strike(made: Cluster, drive: Drive, draw: random.Random, faults: int, kinds: list[str]) -> list[str]:
    struck = []
    for number in range(faults):
        await drive.progress(20 * drive.sessions)
        replica = draw.choice(made.ready())
        kind = kinds[number % len(kinds)]
        struck.append(kind)
        if kind == "caller":
            await drive.kill()
            await drive.start()
            continue
        if kind == "kill":
            await replica.kill()
        else:
            assert await replica.drain() == 0, replica.process.output
        await drive.progress(drive.sessions)
        await replica.start()
    return struck


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_killed_and_drained_replicas(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled, store: str
) -> None:
    """Two replicas of which one after the other is killed, or leaves, and the Node process too."""
    draw = random.Random(seed)
    async with cluster(models, tmp_path, replicas=2, store=store) as made:
        drive = Drive(made.addresses, tmp_path / "files", scaled(200, 50), seed)
        drive.write(20_000)
        await drive.start()
        try:
            struck = await _strike(made, drive, draw, scaled(30, 6), ["kill", "drain", "caller"])
            await drive.progress(drive.sessions)
            await drive.stop()
        finally:
            if drive.process.returncode is None:
                await drive.kill()
        checked = await _verify(drive, oracle, made)
        print(f"{checked} outputs of {drive.sessions} sessions, {store}; {', '.join(struck)}")
