"""What servers read of sockets, on one edge: all of it is answered in time, by a status that is documented."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf.descriptor import MethodDescriptor
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

import statestream
from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2, server_pb2, session_pb2, session_pb2_grpc
from statestream_server.edges.grpc import oip
from statestream_server.edges.oip import oip_pb2
from tests.compat import test_rest
from tests.fuzz import drawn, files
from tests.server.edges import sequences, test_live
from tests.server.test_mutated import mutated
from tests.support import hostile, models
from tests.support.serving import Process, lasting_port, launched

HANGS: Final = 20.0
"""Seconds after which a call counts as one that hangs."""
FAULTS: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
WITHOUT_REASON: Final = (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT)
"""Codes that gRPC itself, health and reflection give, without a reason of ours."""
ADMIN: Final = ("LoadModel", "UnloadModel", "SetAlias", "RepositoryModelLoad", "RepositoryModelUnload", "MoveSessions",
                "FreeQuarantined")  # fmt: skip
# Tells on SIGUSR1 what it holds: tasks, sockets and generators that live are found nowhere else from outside.
COUNTING: Final = """
import asyncio, gc, os, signal, socket, sys
counts = 0
def count(*_):
    global counts
    counts += 1
    gc.collect()
    found = gc.get_objects()
    tasks = sum(1 for one in found if isinstance(one, asyncio.Task) and not one.done())
    print(f"count {counts}: {tasks} tasks, {len(os.listdir('/proc/self/fd'))} files, {len(found)} objects", flush=True)
signal.signal(signal.SIGUSR1, count)
from statestream_server.cli import serve
sys.argv[0] = "statestream serve"
serve()
"""


@dataclass(frozen=True)
class Held:
    """What a server holds while nobody calls it."""

    tasks: int
    files: int
    objects: int
    rss: int
    rows: int
    stored: int


class Fuzzed:
    """A server on one edge, whose operator's token is known."""

    def __init__(self, process: Process, folder: Path, edge: str, http: int) -> None:
        self.process, self.folder, self.edge, self.http = process, folder, edge, http
        self.counted = 0
        self.channel: Any = None

    @contextmanager
    def connected(self) -> Iterator[None]:
        """While this is entered, there is a channel to it."""
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(self.process.address, options) as self.channel:
            yield

    def restored(self) -> None:
        """Every model serves again, whatever callers unloaded."""
        load = self.channel.unary_unary("/statestream.v1.ModelService/LoadModel")
        for path in (self.folder / "models").iterdir():
            if path.name in drawn.MODELS:
                load(model_pb2.LoadModelRequest(name=path.name).SerializeToString(), timeout=60)

    def emptied(self) -> int:
        """Deletes every session; how many are listed then."""
        service = session_pb2_grpc.SessionServiceStub(self.channel)
        listed = list[session_pb2.Session]()
        for _ in range(2):
            listed, page = [], ""
            while True:
                answer = service.ListSessions(session_pb2.ListSessionsRequest(page_token=page), timeout=HANGS)
                listed += answer.sessions
                if not (page := answer.next_page_token):
                    break
            for one in listed:
                with contextlib.suppress(grpc.RpcError):  # It has ended since, or its model is gone.
                    request = session_pb2.DeleteSessionRequest(model=one.model, session_id=one.id)
                    service.DeleteSession(request, timeout=HANGS)
        return len(listed)

    def held(self, stored: int) -> Held:
        """What it holds now that so many sessions are listed; nobody else may be connected."""
        pages = urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=20).read().decode()
        rows = sum(float(found) for found in re.findall(r"^statestream_sessions\{.*?\} (\S+)$", pages, re.M))
        self.counted += 1
        self.process.signal(signal.SIGUSR1)
        found = self.process.wait_for(rf"count {self.counted}: (\d+) tasks, (\d+) files, (\d+) objects")
        assert found is not None, f"the server ended:\n{self.process.output[-3000:]}"
        statm = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return Held(int(found[1]), int(found[2]), int(found[3]), int(statm[1]) * 4096, int(rows), stored)


@contextmanager
def started(folder: Path, edge: str) -> Iterator[Fuzzed]:
    """A server on an edge, its models, tokens and store in a folder."""
    models.write(folder / "models")
    http = lasting_port()
    options = ["--store", f"sqlite:{folder / 'sessions.db'}", "--http", "--http-port", str(http), "--no-watch"]
    options += ["--load-memory", "1024", "--load-timeout", "20", "--log-level", "warning"]
    with launched(Process(folder / "models", options, edge=edge, program=COUNTING)) as process:
        process.ready()
        yield Fuzzed(process, folder, edge, http)


def judged(error: grpc.RpcError | None, what: str) -> None:
    """Whether an end is a documented one."""
    if error is None:
        return
    code, said = error.code(), error.details()
    assert code not in FAULTS, f"{what}: {code} {said}"
    status = rpc_status.from_call(error)
    if status is None:
        assert code in WITHOUT_REASON, f"{what}: {code} without a reason: {said}"
        return
    found = errors.from_status(status)
    assert type(found) is not errors.InternalError, f"{what}: {code} {said}"


def methods() -> Iterator[tuple[str, MethodDescriptor]]:
    """Every method's path and what it is."""
    for module in (pb, session_pb2, model_pb2, server_pb2, oip_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            name = oip.SERVICE if module is oip_pb2 else service.full_name
            for method in service.methods:
                yield f"/{name}/{method.name}", method


def called(channel: Any, path: str, parts: list[bytes]) -> list[bytes]:
    """All answers to a call; its end is judged."""
    found = list[bytes]()
    what = f"{path} {[part.hex() for part in parts]}"
    try:
        call = channel.stream_stream(path)(iter(parts), timeout=HANGS)
        for answer in call:
            found.append(answer)
            if len(found) > 200:  # A text or a forecast of a million steps is as long as was asked.
                call.cancel()
                break
    except grpc.RpcError as error:
        judged(error, what)
    return found


def targets(fuzzed: Fuzzed) -> dict[str, Callable[[], Any]]:
    """By name what is done to a server."""
    every = [*methods()]
    usual = [(path, method) for path, method in every if not method.client_streaming and method.name not in ADMIN]
    admin = [(path, method) for path, method in every if method.name in ADMIN]

    def calls(chosen: list[tuple[str, MethodDescriptor]]) -> Callable[[], Any]:
        requests = st.sampled_from(chosen).flatmap(
            lambda one: st.tuples(st.just(one[0]), drawn.sent(one[1].input_type))
        )

        @given(requests)
        def are_answered(request: tuple[str, bytes]) -> None:
            called(fuzzed.channel, request[0], [request[1]])

        return are_answered

    opening = pb.StreamRequest(frame=1, open=pb.OpenFrame(
        model="counter", handles=bytes(4), ids=["a"], writer=bytes(16), incarnation=1))  # fmt: skip
    frames = drawn.sent(pb.StreamRequest.DESCRIPTOR)
    begun = st.sampled_from([[], [opening.SerializeToString()]])
    step = pb.StreamRequest(frame=2, chunk=pb.ChunkFrame(handles=bytes(4), positions=bytes(8), acked_positions=bytes(8),
        steps=1)).SerializeToString()  # fmt: skip
    right = st.just(step) | st.just(step).flatmap(drawn.damaged)

    @given(begun, st.lists(frames | right, max_size=6))
    def frames_are_answered(first: list[bytes], more: list[bytes]) -> None:
        for answer in called(fuzzed.channel, "/statestream.v1.InferenceService/Stream", [*first, *more]):
            said = pb.StreamResponse.FromString(answer)
            assert "INTERNAL" not in {error.reason for error in _errors(said)}, said

    infer = oip_pb2.ModelInferRequest.DESCRIPTOR
    good = oip_pb2.ModelInferRequest(model_name="counter", raw_input_contents=[np.ones(1, "<f4").tobytes()])
    good.inputs.add(name="x", datatype="FP32", shape=[1, 1, 1])
    good.parameters["sequence_id"].int64_param = 1
    near = st.just(good.SerializeToString()).flatmap(drawn.damaged)

    @given(st.lists(drawn.sent(infer) | near, max_size=5))
    def oip_streams_are_answered(parts: list[bytes]) -> None:
        called(fuzzed.channel, f"/{oip.SERVICE}/ModelStreamInfer", parts)

    @given(near)
    def oip_requests_are_answered(request: bytes) -> None:
        called(fuzzed.channel, f"/{oip.SERVICE}/ModelInfer", [request])

    @given(sequences.steps, sequences.cuts, sequences.mutations)
    def http2_is_answered(made: Any, sizes: Any, changes: Any) -> None:
        sender = sequences.Sender()
        bytes_ = sequences.mutated(b"".join([sender.begin(), *(sender.sent(one) for one in made)]), changes)
        said = b""
        with contextlib.suppress(OSError):  # Gone before all was sent; TimeoutError is none of these.
            said = test_live.answers(fuzzed.process.address, sequences.pieces(bytes_, sizes))
        if fuzzed.edge == "h2":  # What gRPC's core says of it is its own.
            assert not test_live.faults(said)

    @given(st.sampled_from(["counter", "scores", "lstm"]), test_rest.texts, st.binary(max_size=8), test_rest.heads,
           st.sampled_from(["", "", "gzip", "deflate", "br"]))  # fmt: skip
    def rest_is_answered(model: str, text: str, tail: bytes, head: str | None, coding: str) -> None:
        test_rest.fuzzed_at(fuzzed.http, model, text, tail, head, coding)

    heads = st.sampled_from([
        b"GET /v2/models/counter HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"POST /v2/models/counter/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        b"POST /v2/models/counter/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ])  # fmt: skip

    @given(heads.flatmap(drawn.damaged))
    def http_is_answered(request: bytes) -> None:
        with socket.create_connection(("127.0.0.1", fuzzed.http), HANGS) as wire, contextlib.suppress(ConnectionError):
            wire.sendall(request)
            wire.shutdown(socket.SHUT_WR)
            said = b""
            while came := wire.recv(1 << 16):
                said += came
            assert not re.match(rb"HTTP/1.1 (500|502|504)", said), said

    snapshot = list[bytes]()

    @given(st.data())
    def snapshots_are_answered(data: st.DataObject) -> None:
        if not snapshot:
            with statestream.connect(fuzzed.process.address) as client, client.session("lstm", id="snap") as session:
                session.step(np.ones(3, np.float32))
                snapshot.append(session.snapshot())
        request = session_pb2.RestoreSessionRequest(
            model=data.draw(st.sampled_from(["lstm", "gru"])),
            session_id="restored",
            snapshot=data.draw(drawn.damaged(snapshot[0])),
            upgrade=data.draw(st.booleans()),
        )
        called(fuzzed.channel, "/statestream.v1.SessionService/RestoreSession", [request.SerializeToString()])

    keys = st.sampled_from(
        [
            "authorization",
            "traceparent",
            "tracestate",
            "statestream-protocol",
            "statestream-client",
            "x-bin",
        ]
    )
    values = st.sampled_from(
        ["Bearer ss_x", f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'0' * 32}-{'0' * 16}-ff", "1", "-1", ""]
    ) | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip)

    @given(st.lists(st.tuples(keys, values), max_size=4))
    def headers_are_answered(headers: list[tuple[str, str]]) -> None:
        headers = [(key, value.encode() if key.endswith("-bin") else value) for key, value in headers]  # type: ignore[misc]
        request = pb.StepRequest(model="counter", session_id="headers").SerializeToString()
        with contextlib.suppress(ValueError):  # What gRPC's client does not send.
            call = fuzzed.channel.unary_unary("/statestream.v1.InferenceService/Step")
            try:
                call(request, timeout=HANGS, metadata=headers)
            except grpc.RpcError as error:
                judged(error, str(headers))

    @given(st.integers(0, 1 << 30), drawn.lines(files.MODEL_TOML), drawn.lines(files.ALIASES), st.booleans())
    def model_files_are_answered(seed: int, told: str, named: str, whole: bool) -> None:
        folder = fuzzed.folder / "models"
        data = models.counter().SerializeToString() if whole else mutated(random.Random(seed))
        path = hostile.put(data, folder, "drawn")
        try:
            if whole:
                path.with_name("model.toml").write_bytes(told.encode(errors="surrogatepass"))
            (folder / "drawn" / "aliases.toml").write_bytes(named.encode(errors="surrogatepass"))
            request = model_pb2.LoadModelRequest(name="drawn").SerializeToString()
            try:
                fuzzed.channel.unary_unary("/statestream.v1.ModelService/LoadModel")(request, timeout=60)
            except grpc.RpcError as error:
                judged(error, f"seed {seed} {told!r} {named!r}")
            unload = model_pb2.UnloadModelRequest(name="drawn").SerializeToString()
            with contextlib.suppress(grpc.RpcError):
                fuzzed.channel.unary_unary("/statestream.v1.ModelService/UnloadModel")(unload, timeout=60)
        finally:
            shutil.rmtree(folder / "drawn")

    return {
        "calls": calls(usual),
        "admin": calls(admin),
        "frames": frames_are_answered,
        "OIP streams": oip_streams_are_answered,
        "OIP requests": oip_requests_are_answered,
        "HTTP/2": http2_is_answered,
        "REST": rest_is_answered,
        "HTTP": http_is_answered,
        "snapshots over gRPC": snapshots_are_answered,
        "headers": headers_are_answered,
        "model files": model_files_are_answered,
    }


def _errors(said: Any) -> Iterator[Any]:
    """Every error in a message, however deep."""
    for field, value in said.ListFields():
        if field.message_type is None:
            continue
        for one in value if field.is_repeated else [value]:
            if "reason" in one.DESCRIPTOR.fields_by_name:
                yield one
            yield from _errors(one)


def servers(folder: Path, edges: Iterable[str], stack: ExitStack) -> list[Fuzzed]:
    """A server for each edge."""
    found = []
    for edge in edges:
        (folder / edge).mkdir()
        found.append(stack.enter_context(started(folder / edge, edge)))
    return found
