"""The Node client of examples/node: its types, its page, and what it must not lose over killed and drained replicas."""

from __future__ import annotations

import asyncio
import operator
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2, status_pb2

from statestream import aio
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.conftest import models, oracle, scaled, seed
from tests.chaos.oracle import MODEL, OUTPUTS, Oracle, Track, inputs
from tests.compliance import clients
from tests.support import node, pages
from tests.support.models import write
from tests.support.pages import ROOT
from tests.support.serving import Process, process

__all__ = ["models", "oracle", "scaled", "seed"]
Scaled = Callable[[int, int], int]


@dataclass
class Drive:
    """`node files.js` over a folder with the inputs of some sessions.

    Attributes:
        steps: The outputs that it has written, all runs together.
        found: Bytes in each session's file when this run began.
    """

    addresses: list[str]
    folder: Path
    sessions: int
    seed: int
    steps: int = 0
    before: int = 0
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    said: list[str] = field(default_factory=list)
    found: list[int] = field(default_factory=list)

    def write(self, steps: int) -> None:
        """Writes the inputs, so many steps of each session."""
        self.folder.mkdir()
        for number in range(self.sessions):
            (self.folder / f"{self.name(number)}.in").write_bytes(inputs(self.seed, number, 0, steps).tobytes())

    def name(self, number: int) -> str:
        return f"node-{number:04}"

    async def start(self) -> None:
        """Starts it; it is one process at a time."""
        self.before, self.found = self.steps, self._sizes()
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

    async def beyond(self) -> None:
        """Waits until it has written more of each session than it found.

        Where a server and the caller were killed within a moment, a session stands behind its file until then: steps
        whose outputs are written were not durable, and run again.
        """
        async with asyncio.timeout(60), self.news:
            await self.news.wait_for(lambda: all(map(operator.lt, self.found, self._sizes())) or self.reader.done())
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

    def _sizes(self) -> list[int]:
        files = [self.folder / f"{self.name(number)}.out" for number in range(self.sessions)]
        return [file.stat().st_size if file.exists() else 0 for file in files]

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


def _run(script: str, *arguments: str) -> str:
    """What a module prints, run in the client's folder."""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script, *arguments],
        cwd=node.installed(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("node")
    models = write(folder / "models", "counter")
    shutil.copytree(ROOT / "deploy" / "models" / "sunspots", models / "sunspots")
    with process(models, "--store", f"sqlite:{folder / 'sessions.db'}") as server:
        yield server


def test_the_page(server: Process) -> None:
    block = pages.run_by("examples/node/README.md", "tests/compat/test_node.py::test_the_page")
    said = _run(block.text.replace("localhost:8001", server.address))
    assert said.split("\n") == ["[ 1 ] Float32Array", *["true"] * 5, "BAD_TENSOR x", ""]


@pytest.mark.parametrize("page", ["examples/node/README.md", "docs/writing-a-client.md"])
def test_code_on_pages_is_the_clients_own(page: str) -> None:
    for block in pages.blocks(ROOT / page):
        said = pages.state(block, ROOT / page) or block.text.startswith("// Not run by any test: ")
        assert said, f"{page}: nothing runs this, and nothing says so:\n{block.text}"


def test_it_is_short() -> None:
    """Issue 16 asks for a client that can be read: lines of code, without comments and lone brackets."""
    lines = [
        line.strip() for file in (node.EXAMPLE / "src").glob("*.js") for line in file.read_text("utf-8").splitlines()
    ]
    code = [line for line in lines if not line.startswith(("//", "/*", "*")) and line.strip("[](){};,> ")]
    assert len(code) < 1_000, f"{len(code)} lines of code"


def test_the_types() -> None:
    checker = node.installed() / "node_modules" / ".bin" / "tsc"
    done = subprocess.run([checker, "-p", node.EXAMPLE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_protos_compile_alone(tmp_path: Path) -> None:
    """They need nothing beside them but what every protoc brings; google/rpc is on the wire what Google's is."""
    block = pages.run_by("docs/writing-a-client.md", "tests/compat/test_node.py::test_the_protos_compile_alone")
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    command = block.text.replace("protoc ", f"{sys.executable} -m grpc_tools.protoc ", 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=60)
    found = FileDescriptorSet.FromString((tmp_path / "statestream.binpb").read_bytes())
    names = {file.name for file in found.file}
    assert {"statestream/v1/server.proto", "google/rpc/status.proto", "google/protobuf/any.proto"} <= names


@pytest.mark.parametrize("name", ["Status", "ErrorInfo", "RetryInfo", "BadRequest"])
def test_google_rpc_is_on_the_wire_what_googles_is(name: str, tmp_path: Path) -> None:
    files = [ROOT / "protos" / "google" / "rpc" / file for file in ("status.proto", "error_details.proto")]
    out = tmp_path / "rpc.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"--descriptor_set_out={out}"]
    subprocess.run([*command, *files], check=True, timeout=60)
    ours = {one.name: one for file in FileDescriptorSet.FromString(out.read_bytes()).file for one in file.message_type}
    theirs = {**status_pb2.DESCRIPTOR.message_types_by_name, **error_details_pb2.DESCRIPTOR.message_types_by_name}
    fields = {field.name: (field.number, field.type) for field in theirs[name].fields}
    assert fields == {field.name: (field.number, field.type) for field in ours[name].field}


def test_what_is_refused(server: Process) -> None:
    """Wrong callers hear a reason; the session goes on."""
    said = _run(
        """
        import { connect } from './src/index.js';
        const client = await connect(process.argv[1]);
        const session = await client.open('counter', 'refused', { mode: 'replace' });
        const tell = (promise) => promise.then(() => console.log('well'), (error) => console.log(error.reason));
        for (const bad of ['a', [1, 2], new Float64Array(1), { z: 1 }, null, [], [[1], [undefined]], {}]) {
          await tell(session.step(bad));
        }
        await tell(session.step(NaN));
        await tell(session.chunk(new Float32Array(300)));
        await tell(client.open('nothing', 'x'));
        await tell(client.open('counter', 'refused'));
        await tell(client.open('counter', 'not there', { mode: 'resume' }));
        await tell(client.open('counter', ''));
        const [first, refused, behind] = [1, NaN, 1].map((x) => session.step(x));
        await tell(first), await tell(refused), await tell(behind);
        console.log((await session.step(5)).y.data[0], session.position);
        await session.close();
        await client.close();
        await tell(session.step(1));
        """,
        server.address,
    ).split()
    assert said[:8] == ["BAD_TENSOR"] * 8
    assert said[8:14] == [
        *("NON_FINITE_STATE", "BAD_TENSOR", "MODEL_NOT_FOUND", "ALREADY_OPEN", "SESSION_NOT_FOUND", "BAD_FRAME"),
    ]
    assert said[14:] == ["well", "NON_FINITE_STATE", "NON_FINITE_STATE", "6", "2", "CLOSED"]


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    """Without a server connecting gives up in its time, and a step in its own."""
    said = _run(
        """
        import { connect } from './src/index.js';
        const began = Date.now();
        await connect('127.0.0.1:1,127.0.0.1:2', { connectTimeout: 0.5 }).catch(({ reason }) => console.log(reason));
        console.log(Date.now() - began < 5000);
        """
    )
    assert said.split() == ["SERVER_UNAVAILABLE", "true"]


@pytest.mark.parametrize("case", ["broken before its answer left", "drained", "small windows"])
async def test_one_case_of_the_judge(case: str) -> None:
    assert not await clients.judge(["node", str(node.installed() / "numbers.js")], clients.cases()[case])


@pytest.mark.slow
async def test_the_judge() -> None:
    block = pages.run_by("docs/writing-a-client.md", "tests/compat/test_node.py::test_the_judge")
    command = block.text.split("tests.compliance.clients ")[1].split()
    node.installed()
    assert not await clients.main(command)


@pytest.mark.slow
async def test_the_judge_of_our_own_client() -> None:
    assert not await clients.main([sys.executable, "-m", "tests.compliance.numbers"])


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
            await drive.beyond()
            await drive.stop()
        finally:
            if drive.process.returncode is None:
                await drive.kill()
        checked = await _verify(drive, oracle, made)
        print(f"{checked} outputs of {drive.sessions} sessions, {store}; {', '.join(struck)}")
