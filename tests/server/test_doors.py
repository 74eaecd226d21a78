"""The doors of a gRPC port, on either edge: TLS, certificates of callers, Unix sockets; calls over our own HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import uvloop
from click.testing import CliRunner
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import statestream
from statestream import aio
from statestream.command import group
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, model_pb2, server_pb2, server_pb2_grpc
from statestream_server.access import certificates, tokens
from statestream_server.access.certificates import NOBODY, Names
from statestream_server.edges.http import metrics
from statestream_server.settings import StartError, check_reach, check_tls
from statestream_server.workers.relay import Relay
from tests.support import http2
from tests.support.arrays import tensor
from tests.support.calls import DEADLINE, Caller, connected, failing
from tests.support.serving import free_settings, lasting_port, process, serving

EDGES = ("grpcio", "h2")
INFO = server_pb2.GetServerInfoRequest(protocol=1, oldest_protocol=1)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority and certificates of a server and a client that it signed."""
    folder = tmp_path_factory.mktemp("papers")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2")
    for name, more in (
        ("server", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ("client", "subjectAltName=DNS:me,URI:spiffe://acme/billing"),
        ("other", "subjectAltName=DNS:x"),
        # URIs by the looks of them: one is of another kind, one has more behind a NUL. And two common names.
        ("odd/CN=other", _names((0x82, b"spiffe://acme/billing"), (0x86, b"spiffe://acme/billing\0.evil"))),
        ("torn", _names((0x86, b"a:\xff"))),
        ("renewed", "subjectAltName=URI:spiffe://acme/billing"),  # Which holds for longer.
        ("old", ""),  # Version 1, which has no alternative names.
    ):
        name, _, _ = (subject := name).partition("/")
        (folder / "more").write_text(more)
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}")
        signed = [
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "20000" if name == "renewed" else "2",
        ]
        signed += ["-extfile", "more"] if more else []
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def _names(*names: tuple[int, bytes]) -> str:
    """Alternative names of these kinds as openssl reads them, any bytes among them."""
    inside = b"".join(bytes((kind, len(name))) + name for kind, name in names)
    return f"subjectAltName=DER:{(bytes((0x30, len(inside))) + inside).hex(':')}"


def _tls(papers: Path, **more: Any) -> dict[str, Any]:
    return {"tls_certificate": papers / "server.pem", "tls_key": papers / "server.key", **more}


async def _info(channel: Any) -> server_pb2.GetServerInfoResponse:
    answer: server_pb2.GetServerInfoResponse = await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(
        INFO, timeout=DEADLINE
    )
    return answer


@contextlib.asynccontextmanager
async def _secured(address: str, papers: Path, *, shown: bool, name: str = "client") -> AsyncIterator[Any]:
    mine = ((papers / f"{name}.key").read_bytes(), (papers / f"{name}.pem").read_bytes()) if shown else (None, None)
    credentials = grpc.ssl_channel_credentials((papers / "ca.pem").read_bytes(), *mine)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        yield channel


@pytest.mark.parametrize("edge", EDGES)
async def test_a_port_in_tls_is_spoken_to_in_tls_alone(edge: str, models_dir: Path, papers: Path) -> None:
    async with serving(models_dir, edge=edge, **_tls(papers)) as local:
        async with _secured(local.address, papers, shown=False) as channel:
            assert (await _info(channel)).server_id == local.server.id
        with pytest.raises(grpc.aio.AioRpcError):
            await server_pb2_grpc.ServerServiceStub(local.channel).GetServerInfo(INFO, timeout=2)


@pytest.mark.parametrize("edge", EDGES)
async def test_callers_without_a_certificate_are_refused(edge: str, models_dir: Path, papers: Path) -> None:
    async with serving(models_dir, edge=edge, **_tls(papers, tls_clients=papers / "ca.pem")) as local:
        async with _secured(local.address, papers, shown=True) as channel:
            assert (await _info(channel)).server_id == local.server.id
        async with _secured(local.address, papers, shown=False) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(INFO, timeout=2)
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("twin", ["aio", "sync"])
async def test_clients_show_a_token_and_a_certificate(
    edge: str, twin: str, models_dir: Path, papers: Path, tmp_path: Path
) -> None:
    secret, _ = tokens.new(tmp_path / "tokens.toml", "acme", frozenset({"step"}), time.time() + 1_000)
    shown = statestream.Tls(papers / "ca.pem", papers / "client.pem", papers / "client.key")
    told = _tls(papers, tls_clients=papers / "ca.pem", tokens=tmp_path / "tokens.toml")
    async with serving(models_dir, edge=edge, **told) as local:
        if twin == "aio":
            async with aio.connect(local.address, token=secret, tls=shown) as client:
                await (await client.session("counter", id="a")).step(1.0)
            if edge == "h2":  # A client that was closed has no connection, though it is still there.
                await local.until(lambda: local.server.connected()[0] == 0)
            del client
        else:

            def step() -> None:
                with statestream.connect(local.address, token=secret, tls=shown) as client:
                    client.session("counter", id="a").step(1.0)

            await asyncio.to_thread(step)
        assert len(local.table("counter").rows_of("acme")) == 1


@pytest.mark.parametrize("secured", [False, True], ids=["silent", "secured"])
async def test_no_socket_outlives_its_port(models_dir: Path, papers: Path, *, secured: bool) -> None:
    """Not in its handshake, and not where the client does not close its side."""
    context = ssl.create_default_context(cafile=str(papers / "ca.pem"))
    context.set_alpn_protocols(["h2"])
    async with serving(models_dir, edge="h2", **_tls(papers)) as local:
        client = socket.create_connection(("127.0.0.1", local.running.port), timeout=DEADLINE)
        if secured:
            client = await asyncio.to_thread(context.wrap_socket, client, server_hostname="localhost")
            assert await asyncio.to_thread(client.recv, 1)  # The server speaks: the connection stands.
        async with _secured(local.address, papers, shown=False) as channel:
            await _info(channel)  # Who came before this one has been accepted.
        ours = client.getsockname()
    with client:
        held = [one for one in gc.get_objects() if type(one) is socket.socket and one.fileno() >= 0]
        assert not [one for one in held if one.family == socket.AF_INET and _peer(one) == ours]


def test_a_handshake_whose_first_bytes_came_with_the_connection_goes_on(models_dir: Path, papers: Path) -> None:
    """They are in the socket when uvloop accepts it; what it reads of it before TLS listens would be lost."""
    context = ssl.create_default_context(cafile=str(papers / "ca.pem"))
    context.set_alpn_protocols(["h2"])

    async def greeted(port: int) -> None:
        come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(come, go, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as wire:
            wire.sendall(go.read())  # In the turn in which it connects.
            wire.setblocking(False)
            said = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(wire, 1), 5)
        assert said == b"\x16"

    async def main() -> None:
        async with serving(models_dir, edge="h2", **_tls(papers)) as local:
            await asyncio.gather(*(greeted(local.running.port) for _ in range(30)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_a_port_that_has_no_more_files_accepts_again(
    models_dir: Path, papers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, failures = socket.socket.accept, [OSError(24, "Too many open files")]

    def failing_once(listener: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return accept(listener)

    async with serving(models_dir, edge="h2", **_tls(papers)) as local:
        monkeypatch.setattr(socket.socket, "accept", failing_once)
        async with _secured(local.address, papers, shown=False) as channel:
            await _info(channel)
    assert not failures


def _peer(one: socket.socket) -> Any:
    with contextlib.suppress(OSError):
        return one.getpeername()


@pytest.mark.parametrize("edge", EDGES)
async def test_a_unix_socket_leads_to_the_same_server(edge: str, models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "door"
    async with serving(models_dir, edge=edge, unix=str(path)) as local, connected(f"unix:{path}") as channel:
        assert (await _info(channel)).server_id == local.server.id


async def test_another_protocol_in_tls_is_not_answered(models_dir: Path, papers: Path) -> None:
    """Without h2 agreed on in the handshake nothing says that HTTP/2 is meant (RFC 9113 §3.3)."""
    context = ssl.create_default_context(cafile=str(papers / "ca.pem"))
    async with serving(models_dir, edge="h2", **_tls(papers)) as local:
        reader, writer = await asyncio.open_connection("127.0.0.1", local.running.port, ssl=context)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
        writer.close()


def test_what_tls_needs_is_asked_for_by_name(tmp_path: Path, papers: Path) -> None:
    with pytest.raises(StartError, match="--tls-key is missing"):
        check_tls(free_settings(tmp_path, tls_certificate=papers / "server.pem"))
    with pytest.raises(StartError, match="--tls-certificate and --tls-key"):
        check_tls(free_settings(tmp_path, tls_clients=papers / "ca.pem"))
    with pytest.raises(StartError, match="--tls-clients"):
        check_reach(free_settings(tmp_path, host="0.0.0.0"))
    check_reach(free_settings(tmp_path, host="0.0.0.0", **_tls(papers, tls_clients=papers / "ca.pem")))


async def test_files_that_are_no_certificate_stop_the_start(models_dir: Path, papers: Path) -> None:
    wrong = {"tls_certificate": papers / "server.pem", "tls_key": papers / "client.key"}
    with pytest.raises(StartError, match="no certificate and its key"):
        async with serving(models_dir, edge="h2", **wrong):
            pass


async def test_a_port_that_is_taken_stops_the_start(models_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StartError, match="the port is taken"):
        async with serving(models_dir, edge="h2", port=taken.getsockname()[1]):
            pass


async def test_compressed_messages_and_binary_metadata_arrive(models_dir: Path) -> None:
    async with serving(models_dir, edge="h2") as local:
        stub = inference_pb2_grpc.InferenceServiceStub(local.channel)
        request = pb.StepRequest(model="lstm", session_id="g", inputs=[tensor("x", np.zeros((1, 3), np.float32))])
        metadata = (("some-bin", b"\x00\xff"), ("words", "a, b"))
        call = stub.Step(request, compression=grpc.Compression.Gzip, metadata=metadata, timeout=DEADLINE)
        assert (await call).position == 1
        assert await call.code() == grpc.StatusCode.OK


async def test_a_call_with_malformed_headers_ends_alone(models_dir: Path) -> None:
    """Others share its connection: a proxy's, or another task's."""
    async with serving(models_dir, edge="h2") as local:
        watch = health_pb2_grpc.HealthStub(local.channel).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        for metadata in ((("authorization", " "),), (("x", "a "),)):
            info = server_pb2_grpc.ServerServiceStub(local.channel).GetServerInfo
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await info(INFO, metadata=metadata, timeout=DEADLINE)
            assert caught.value.code() == grpc.StatusCode.INTERNAL  # Its library's name for a reset stream.
        assert local.server.connected()[0] == 1
        assert not watch.done()
        watch.cancel()


async def test_a_method_that_is_no_text_leaves_the_port_open(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """grpcio ends its server over it; over h2 it is a method that is not there."""
    for edge in EDGES:
        async with serving(models_dir, edge=edge) as local:
            fields = [(name.encode(), value.encode()) for name, value in http2.headers_of("")]
            block = b"".join(http2.literal(n, b"/a\xaa/b" if n == b":path" else v) for n, v in fields)
            async with http2.wired(local.address) as wire:
                await wire.send(http2.raw(1, 5, 1, block))
                assert await wire.until(lambda: wire.end is not None or wire.status(1) is not None, 10)
            info = server_pb2_grpc.ServerServiceStub(local.channel).GetServerInfo
            assert (await info(INFO, wait_for_ready=True, timeout=DEADLINE)).server_id == local.server.id
    opened = [record for record in caplog.records if "the port is opened anew" in record.getMessage()]
    assert len(opened) == EDGES.count("grpcio")


async def test_errors_carry_their_details(models_dir: Path) -> None:
    async with serving(models_dir, edge="h2") as local:
        stub = inference_pb2_grpc.InferenceServiceStub(local.channel)
        failure = await failing(stub.Predict(pb.PredictRequest(model="näbel %")))
        assert failure.reason == "MODEL_NOT_FOUND"
        assert "näbel %" in failure.message


async def test_a_deadline_ends_a_call_that_waits(models_dir: Path) -> None:
    async with serving(models_dir, edge="h2") as local:
        stub = inference_pb2_grpc.InferenceServiceStub(local.channel)
        request = pb.StepRequest(model="lstm", session_id="d", inputs=[tensor("x", np.zeros((1, 3), np.float32))])
        with local.engine_held():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Step(request, timeout=0.3)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await local.until(lambda: local.server.connected()[1] == 0)


async def test_a_message_that_is_longer_than_its_limit_is_refused_by_its_length(models_dir: Path) -> None:
    async with serving(models_dir, edge="h2", limits={"max_message_bytes": 1 << 16}) as local:
        stub = inference_pb2_grpc.InferenceServiceStub(local.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Predict(pb.PredictRequest(model="x" * (1 << 20)), timeout=DEADLINE)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await _info(local.channel)).server_id == local.server.id


@pytest.mark.parametrize("edge", EDGES)
async def test_health_and_reflection_are_behind_the_same_table(edge: str, models_dir: Path) -> None:
    async with serving(models_dir, edge=edge) as local:
        checks = health_pb2_grpc.HealthStub(local.channel)
        answer = await checks.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await checks.Check(health_pb2.HealthCheckRequest(service="none"), timeout=DEADLINE)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        call = reflection_pb2_grpc.ServerReflectionStub(local.channel).ServerReflectionInfo(timeout=DEADLINE)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        found = await call.read()
        listed = {one.name for one in found.list_services_response.service}
        assert listed >= {"statestream.v1.InferenceService", "inference.GRPCInferenceService"}
        # What describes each is enough to call it.
        for name in sorted(listed):
            await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
            files = (await call.read()).file_descriptor_response.file_descriptor_proto
            pool, left = DescriptorPool(), {}
            for data in files:
                proto = FileDescriptorProto.FromString(data)
                left[proto.name] = proto
            while left:
                proto = next(one for one in left.values() if left.keys().isdisjoint(one.dependency))
                pool.Add(left.pop(proto.name))
            assert pool.FindServiceByName(name).methods[0].input_type.full_name
        assert pool.FindMessageTypeByName("statestream.v1.StepRequest")
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest"))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_a_method_that_is_not_there_is_refused(models_dir: Path) -> None:
    async with serving(models_dir, edge="h2") as local:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await local.channel.unary_unary("/no.Such/Method")(b"", timeout=DEADLINE)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_no_header_is_logged_not_even_at_debug(models_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with serving(models_dir, edge="h2") as local:
        stub = server_pb2_grpc.ServerServiceStub(local.channel)
        await stub.GetServerInfo(INFO, metadata=(("authorization", "Bearer of-a-secret"),), timeout=DEADLINE)
    assert "of-a-secret" not in caplog.text


async def test_a_caller_who_left_before_its_answer_is_no_fault_in_the_log(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As grpcio tells it; what else it tells stays."""
    grpcio = logging.getLogger("grpc._cython.cygrpc")
    async with serving(models_dir, edge="grpcio"):
        grpcio.error("ExecuteBatchError raised in core by servicer method [%s]", "/a/b")
        grpcio.error("something else")
    assert [record.message for record in caplog.records if record.name == grpcio.name] == ["something else"]


PAPERS = """
[[certificate]]
id = "billing"
uri = "spiffe://acme/billing"
tenant = "acme"
rights = ["step"]

[[certificate]]
id = "ops"
name = "other"
tenant = "ops"
rights = ["admin"]
"""


@pytest.mark.parametrize("edge", EDGES)
async def test_a_certificate_stands_for_a_token(edge: str, models_dir: Path, papers: Path, tmp_path: Path) -> None:
    """By a URI among its names or by its subject; who has neither is nobody, and one taken out of the file goes."""
    path = tmp_path / "tokens.toml"
    path.write_text(PAPERS)
    told = _tls(papers, tls_clients=papers / "ca.pem", tokens=path)
    load = model_pb2.LoadModelRequest(name="counter")
    async with serving(models_dir, edge=edge, **told) as local:

        async def as_billing(channel: Any) -> None:
            caller = Caller(channel)
            await caller.step("counter", "a", {"x": np.ones((1, 1), np.float32)})
            assert len(local.table("counter").rows_of("acme")) == 1
            denied = await failing(caller.models.LoadModel(load))
            assert "the right 'admin'; certificate billing has step" in denied.message
            path.write_text(PAPERS.replace("spiffe://acme/billing", "spiffe://acme/other"))
            for _ in range(2):
                local.server.access.look()
            gone = await failing(caller.step("counter", "a", {"x": np.ones((1, 1), np.float32)}))
            assert (gone.reason, "knows no certificate" in gone.message) == ("UNAUTHENTICATED", True)

        async def as_ops(channel: Any) -> None:
            caller = Caller(channel)
            assert (await caller.models.LoadModel(load)).model.name == "counter"
            denied = await failing(caller.step("counter", "a", {"x": np.ones((1, 1), np.float32)}))
            assert "the right 'step'; certificate ops has admin" in denied.message
            info = server_pb2_grpc.ServerServiceStub(channel).GetServerInfo
            wrong = await failing(info(INFO, timeout=DEADLINE, metadata=(("authorization", "Bearer ss_wrong"),)))
            assert "the token is not known here" in wrong.message

        for name, calls in (("client", as_billing), ("other", as_ops)):
            async with _secured(local.address, papers, shown=True, name=name) as channel:
                await calls(channel)
            del channel  # grpc.aio disconnects with its last reference.
        gc.collect()
        if local.server.connected is not None:
            await local.until(lambda: local.server.connected()[0] == 0)


@pytest.mark.parametrize("edge", EDGES)
async def test_what_only_looks_like_a_name_is_none(
    edge: str, models_dir: Path, papers: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A URI is one of that kind and whole, and of several common names the first counts, on either edge."""
    path = tmp_path / "tokens.toml"
    path.write_text(PAPERS)
    async with serving(models_dir, edge=edge, tokens=path, **_tls(papers, tls_clients=papers / "ca.pem")) as local:
        for name, reason in (("odd", "knows no certificate"), ("torn", "knows no certificate|failed to connect")):
            async with _secured(local.address, papers, shown=True, name=name) as channel:
                with pytest.raises(grpc.aio.AioRpcError, match=reason):
                    await _info(channel)
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("edge", EDGES)
async def test_a_certificate_that_ends_ends_what_runs_under_it(
    edge: str, models_dir: Path, papers: Path, tmp_path: Path
) -> None:
    """As a token that expires does; another certificate of the same entry, and a token, hold; sessions are kept."""
    path = tmp_path / "tokens.toml"
    path.write_text(PAPERS)
    secret, _ = tokens.new(path, "acme", frozenset({"step"}), time.time() + 1e9)
    roots = papers / "ca.pem"

    def shown(name: str) -> statestream.Tls:
        return statestream.Tls(roots, papers / f"{name}.pem", papers / f"{name}.key")

    async def step(session: Any) -> float:
        return float(np.asarray(await session.step(1.0)).squeeze())

    async def refused(session: Any) -> str:
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await step(session)
                except statestream.Unauthenticated as error:
                    return error.message

    async with contextlib.AsyncExitStack() as stack:
        local = await stack.enter_async_context(
            serving(models_dir, edge=edge, tokens=path, **_tls(papers, tls_clients=roots))
        )
        access = local.server.access
        assert access is not None

        async def connect(name: str, **more: Any) -> Any:
            return await stack.enter_async_context(aio.connect(local.address, tls=shown(name), **more))

        ending, staying, by_token = (
            await connect("client"),
            await connect("renewed"),
            await connect("client", token=secret),
        )
        session, other = await ending.session("counter", id="a"), await staying.session("counter", id="b")
        third = await by_token.session("counter", id="c")
        assert [await step(each) for each in (session, other, third)] == [1, 1, 1]
        channel = await stack.enter_async_context(_secured(local.address, papers, shown=True))
        assert (await _info(channel)).server_id == local.server.id
        access._clock = lambda: time.time() + 3 * 86_400
        access.look()
        assert re.search(r"billing.*ended \(notAfter\); connect again with a new one", await refused(session))
        failure = await failing(_info(channel))
        assert (failure.reason, "(notAfter)" in failure.message) == ("UNAUTHENTICATED", True)
        assert [await step(each) for each in (other, third)] == [2, 2]
        assert await step(await staying.session("counter", id="a")) > 1
        access.look()
        assert sorted(map(len, (each._shown for each in access._grants.values()))) == [0, 0, 1]
        path.write_text(PAPERS.replace("spiffe://acme/billing", "spiffe://acme/other"))
        for _ in range(2):
            access.look()
        assert re.search("revoked|knows no certificate", await refused(other))


def test_when_a_certificate_ends_is_read_on_either_edge(papers: Path) -> None:
    """From DER as `ssl` reads it: of both kinds of times, and of one that does not say its version."""
    for name in ("client", "renewed", "old"):
        pem = (papers / f"{name}.pem").read_bytes()
        asked = ["openssl", "x509", "-enddate", "-noout", "-in", str(papers / f"{name}.pem")]
        said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
        names = certificates.of_context({"transport_security_type": [b"ssl"], "x509_pem_cert": [pem]})
        assert names.ends == ssl.cert_time_to_seconds(said.strip().partition("=")[2])
    for broken in (b"", b"x", pem[:200], pem.replace(b"M", b"N")):
        assert certificates.of_context({"transport_security_type": [b"ssl"], "x509_pem_cert": [broken]}).ends < 0
    assert NOBODY.ends == certificates.relayed(certificates.told(NOBODY).decode()).ends > time.time()


async def test_without_tls_no_name_is_believed(models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(PAPERS)
    for edge in EDGES:
        async with serving(models_dir, edge=edge, tokens=path) as local:
            failure = await failing(_info(local.channel))
            assert failure.reason == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PAPERS.replace("uri = ", "url = "), "certificate 1: 'url' is unknown"),
        (PAPERS.replace('name = "other"', ""), "certificate 2: expected uri"),
        (PAPERS.replace('"ops"\nname', '"billing"\nname'), "certificate 2 has an id or a name that another one has"),
        (PAPERS.replace('["admin"]', '["root"]'), "certificate 2: one of the rights is unknown"),
        ("certificate = 5", "expected .*certificate"),
    ],
)
def test_a_file_that_knows_certificates_is_read_strictly(text: str, told: str) -> None:
    with pytest.raises(tokens.TokensError, match=told):
        tokens.parse(text.encode(), "tokens.toml")


def test_the_command_lists_certificates_and_takes_one_out(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(PAPERS + PAPERS.replace("billing", "bill").split("\n\n")[0])  # One name begins as another does.
    run = CliRunner().invoke
    listed = run(group.main, ["token", "ls", "--tokens", str(path)])
    assert "certificate uri:spiffe://acme/billing" in listed.output, listed.output
    gone = run(group.main, ["token", "revoke", "--tokens", str(path), "bill"])
    assert (gone.exit_code, gone.output) == (0, "certificate bill of tenant 'acme' is revoked\n")
    assert {each.id for each in tokens.parse(path.read_bytes(), "").tokens.values()} == {"billing", "ops"}
    made = run(group.main, ["token", "new", "--tokens", str(path), "--tenant", "acme"])
    assert made.exit_code == 0, made.output
    assert len(tokens.parse(path.read_bytes(), "").tokens) == 3


async def _get(port: int | None, context: ssl.SSLContext | None, head: str = "") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(f"GET /v2/models HTTP/1.1\r\nHost: a\r\n{head}Connection: close\r\n\r\n".encode())
        return await asyncio.wait_for(reader.read(), DEADLINE)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_the_http_port_is_in_tls_and_knows_certificates(models_dir: Path, papers: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(PAPERS)
    context = ssl.create_default_context(cafile=str(papers / "ca.pem"))
    told = _tls(papers, http_tls=True, http_port=0)
    async with serving(models_dir, **told) as local:
        assert b"counter" in await _get(local.running.http_port, context)
        asked = ["health", local.address, "--timeout", "10"]
        for roots, code in (["--tls-roots", str(papers / "ca.pem")], 0), ([], 1):
            ran = await asyncio.to_thread(CliRunner().invoke, group.main, [*asked, *roots])
            assert ran.exit_code == code, ran.output
        with contextlib.suppress(OSError):
            assert not (await _get(local.running.http_port, None)).startswith(b"HTTP")
    told |= {"tls_clients": papers / "ca.pem"}
    async with serving(models_dir, **told) as local:
        with contextlib.suppress(OSError):
            assert not (await _get(local.running.http_port, context)).startswith(b"HTTP")
        context.load_cert_chain(papers / "client.pem", papers / "client.key")
        assert b"counter" in await _get(local.running.http_port, context)
    async with serving(models_dir, **told, tokens=path) as local:
        assert b"counter" in await _get(local.running.http_port, context)
        assert b"401" in await _get(local.running.http_port, context, "Authorization: Bearer no\r\n")
    assert (
        free_settings(tmp_path, http_tls=True)
        .http_pages(8002)
        .startswith("metrics on https://127.0.0.1:8002/metrics, ")
    )
    with pytest.raises(StartError, match="--http-tls puts"):
        check_tls(free_settings(tmp_path, http_tls=True))


async def test_a_worker_believes_the_process_before_it_whose_certificate_came(
    models_dir: Path, papers: Path, tmp_path: Path
) -> None:
    """And nobody else: the header that says so is dropped by the relay, and not read at a port."""
    path, told_by = tmp_path / "tokens.toml", certificates.told(Names(("spiffe://acme/billing",), "client"))
    path.write_text(PAPERS)

    async def asked(relay: Relay, names: Names, *headers: tuple[bytes, bytes]) -> int:
        said = list[Any]()

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            said.append(message)

        scope: dict[str, Any] = {"method": "GET", "path": "/v2/models", "raw_path": b"/v2/models", "query_string": b""}
        scope |= {"headers": [(b"host", b"a"), *headers], "state": {"names": names}, "client": ("a", 1)}
        await relay(scope, receive, send)
        return int(said[0]["status"])

    async with serving(models_dir, tokens=path, http_unix=str(tmp_path / "0.sock")):
        worker: Any = SimpleNamespace(index=0, reason="")
        relay, header = Relay([worker], tmp_path), certificates.RELAYED.encode()
        known, other = Names(("spiffe://acme/billing",), "client"), Names((), "nobody")
        assert await asked(relay, known) == 200
        many = Names((*(f"spiffe://acme/{number}/{'x' * 60}" for number in range(1000)), *known.uris), "client")
        assert await asked(relay, many) == 200
        assert await asked(relay, other) == 401
        assert await asked(relay, NOBODY, (header, told_by)) == 401
        assert await asked(relay, other, (header, told_by), (header.upper(), told_by)) == 401
        assert await asked(relay, known, (b"authorization", b"Bearer wrong")) == 401
        for value in (b"", b"x", b"W10=", b"bnVsbA==", b"WzEsMl0="):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "0.sock")
            writer.write(b"GET /v2/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s: %s\r\n\r\n" % (header, value))
            assert b" 401 " in (await asyncio.wait_for(reader.read(), DEADLINE)).split(b"\r\n")[0] + b" "
            writer.close()
    async with serving(models_dir, tokens=path, http_port=0) as local:
        head = f"{certificates.RELAYED}: {told_by.decode()}\r\n"
        assert b" 401 " in await _get(local.running.http_port, None, head)


@pytest.mark.slow
async def test_several_workers_know_the_certificates_of_the_http_port(
    models_dir: Path, papers: Path, tmp_path: Path
) -> None:
    path, port = tmp_path / "tokens.toml", lasting_port()
    path.write_text(PAPERS)
    options = [
        "--workers",
        "2",
        "--store",
        f"sqlite:{tmp_path / 's.db'}",
        "--tokens",
        str(path),
        "--http-tls",
        "--http",
    ]
    options += ["--http-port", str(port), "--tls-clients", str(papers / "ca.pem")]
    options += ["--tls-certificate", str(papers / "server.pem"), "--tls-key", str(papers / "server.key")]
    with process(models_dir, *options):
        for name, status in (("client", b"200"), ("server", b"401")):
            context = ssl.create_default_context(cafile=str(papers / "ca.pem"))
            context.load_cert_chain(papers / f"{name}.pem", papers / f"{name}.key")
            head = f"{certificates.RELAYED}: {certificates.told(Names((), 'other')).decode()}\r\n"
            for _ in range(4):
                assert status in (await _get(port, context, head)).split(b"\r\n")[0]


@pytest.mark.parametrize("edge", EDGES)
async def test_connections_beyond_the_most_are_refused_and_those_there_are_go_on(edge: str, models_dir: Path) -> None:
    async with serving(models_dir, edge=edge, max_connections=1) as local:
        await _info(local.channel)
        reader, writer = await asyncio.open_connection("127.0.0.1", local.running.port)
        with contextlib.suppress(ConnectionError):
            said = await asyncio.wait_for(reader.read(), DEADLINE)
            if edge == "h2":
                assert b"as many as it takes (--max-connections)" in said
                assert local.server.refused_connections == {"grpc": 1, "http": 0}
        writer.close()
        await _info(local.channel)


async def test_a_full_http_port_says_so(models_dir: Path) -> None:
    """One that is silent makes room; where all have a request under way, the new one is refused."""
    async with serving(models_dir, http_port=0, max_http_connections=1) as local:
        silent = await asyncio.open_connection("127.0.0.1", local.running.http_port)
        assert b"counter" in await _get(local.running.http_port, None)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(silent[0].read(), DEADLINE) == b""
        silent[1].close()
        reader, writer = await asyncio.open_connection("127.0.0.1", local.running.http_port)
        writer.write(b"POST /v2/models/scores/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        await writer.drain()
        answer = b""
        while b"503" not in answer:
            answer = await _get(local.running.http_port, None)
        assert b"--max-http-connections" in answer
        assert local.server.refused_connections["http"] == 1
        told = next(
            one
            for one in metrics.ServerCollector(local.server).collect()
            if one.name == "statestream_refused_connections"
        )
        assert {sample.labels["door"]: sample.value for sample in told.samples} == {"grpc": 0, "http": 1}
        writer.close()
        del reader
