"""Tokens: who may call, what of it, until when; and that no token is told to anybody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

import statestream
from statestream import aio, errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, model_pb2, server_pb2, server_pb2_grpc
from statestream.v1.model_pb2_grpc import ModelServiceStub
from statestream_server.access import tokens
from statestream_server.access.commands import token as command
from statestream_server.access.grants import Access
from statestream_server.access.tokens import ADMIN, STEP, TokensError
from statestream_server.edges.grpc import chain, rights
from statestream_server.sessions.admission.taps import Taps
from statestream_server.stores.base import Key
from tests.support.arrays import tensor
from tests.support.calls import DEADLINE, failing
from tests.support.serving import EDGES, Local, serving

MODEL = "counter"
YEAR = 365 * 86_400.0


class Door:
    """A file of tokens, and the tokens that it has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acme, self.acme_id = self.new("acme")
        self.other, self.other_id = self.new("other")
        self.operator, _ = self.new("acme", STEP, ADMIN)
        self.watcher, _ = self.new("acme", ADMIN)

    def new(self, tenant: str, *rights: str, seconds: float = YEAR) -> tuple[str, str]:
        rights = rights or (STEP,)
        secret, made = tokens.new(self.path, tenant, frozenset(rights), time.time() + seconds)
        return secret, made.id


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path / "tokens.toml")


@pytest.fixture(params=EDGES)
async def local(models_dir: Path, door: Door, request: pytest.FixtureRequest) -> AsyncIterator[Local]:
    async with serving(models_dir, tokens=door.path, edge=request.param) as local:
        yield local


async def test_counts_and_metrics_know_tenants(models_dir: Path, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not administer counts its own sessions; metrics tell tenants apart where that is said."""
    from statestream_server.edges.http import metrics

    def of(local: Local, name: str) -> dict[str, float]:
        found = next(one for one in metrics.ServerCollector(local.server).collect() if one.name == name)
        return {sample.labels["tenant"]: sample.value for sample in found.samples}

    async with serving(models_dir, tokens=door.path, tenant_metrics=True) as local:
        step = pb.StepRequest(model="counter", session_id="a", inputs=[tensor("x", np.ones((1, 1), np.float32))])
        await inference_pb2_grpc.InferenceServiceStub(local.channel).Step(step, metadata=bearer(door.acme))
        for secret, count in ((door.acme, 1), (door.other, 0), (door.operator, 1)):
            asked = model_pb2.GetModelRequest(name="counter")
            found = await ModelServiceStub(local.channel).GetModel(asked, metadata=bearer(secret))
            assert found.model.resident_sessions == count
        assert of(local, "statestream_tenant_sessions") == {"acme": 1, "other": 0}
        monkeypatch.setattr(metrics, "_MOST_TENANTS", 1)
        assert of(local, "statestream_tenant_sessions") == {"acme": 1, "*": 0}
    async with serving(models_dir, tokens=door.path) as local:
        assert of(local, "statestream_tenant_sessions") == {}


def test_a_tenant_watches_so_many_and_leaves_room_for_others() -> None:
    taps = Taps(lambda: 0.0)
    for number in range(32):
        taps.watch(Key("acme", "m", str(number)))
    with pytest.raises(errors.Overloaded, match="32 of your sessions are watched already"):
        taps.watch(Key("acme", "m", "more"))
    for tenant in range(7):
        for number in range(32):
            taps.watch(Key(str(tenant), "m", str(number)))
    with pytest.raises(errors.Overloaded, match="256 sessions are watched already"):
        taps.watch(Key("other", "m", "a"))


def bearer(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


def look(access: Access) -> None:
    """Has a file looked at until what it says counts."""
    access.look()
    access.look()


def step_request(id: str = "a", value: float = 1.0) -> pb.StepRequest:
    return pb.StepRequest(model=MODEL, session_id=id, inputs=[tensor("x", np.full((1, 1), value, np.float32))])


async def test_who_shows_no_token_hears_so_and_health_is_open(local: Local, door: Door) -> None:
    inference = inference_pb2_grpc.InferenceServiceStub(local.channel)
    wrong = [(), bearer("ss_wrong"), (("authorization", door.acme),), (("authorization", f"Basic {door.acme}"),)]
    wrong += [bearer(door.acme) * 2, bearer("x" * 5000), bearer(door.acme[:-1])]
    for metadata in wrong:
        failure = await failing(inference.Step(step_request(), metadata=metadata))
        assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        assert door.acme not in failure.message
        stream = inference.Stream(metadata=metadata)
        assert await stream.code() == grpc.StatusCode.UNAUTHENTICATED
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    reflection = reflection_pb2_grpc.ServerReflectionStub(local.channel)
    assert await reflection.ServerReflectionInfo().code() == grpc.StatusCode.UNAUTHENTICATED
    assert await reflection.ServerReflectionInfo(iter([asked]), metadata=bearer(door.acme)).read()
    check = await health_pb2_grpc.HealthStub(local.channel).Check(health_pb2.HealthCheckRequest())
    assert check.status == health_pb2.HealthCheckResponse.SERVING
    assert await inference.Step(step_request(), metadata=bearer(door.acme))
    assert not local.table(MODEL).rows_of("")


async def test_a_token_that_comes_to_be_known_is_let_in_on_the_connection_that_was_refused(
    local: Local, door: Door
) -> None:
    inference, access = inference_pb2_grpc.InferenceServiceStub(local.channel), local.server.access
    assert access is not None
    secret, _ = tokens.new(door.path, "acme", frozenset((STEP,)), time.time() + YEAR)
    for _ in range(3):  # With the same headers, which the edge knows again by their bytes.
        failure = await failing(inference.Step(step_request(), metadata=bearer(secret)))
        assert failure.reason == "UNAUTHENTICATED"
    look(access)
    assert await inference.Step(step_request(), metadata=bearer(secret))


async def test_rights_are_looked_at_for_every_method(local: Local, door: Door) -> None:
    """An operator's calls need `admin`; one that has nothing else may not step."""
    models, server = ModelServiceStub(local.channel), server_pb2_grpc.ServerServiceStub(local.channel)
    inference = inference_pb2_grpc.InferenceServiceStub(local.channel)
    refused = [
        models.LoadModel(model_pb2.LoadModelRequest(name=MODEL), metadata=bearer(door.acme)),
        models.UnloadModel(model_pb2.UnloadModelRequest(name=MODEL), metadata=bearer(door.acme)),
        server.MoveSessions(server_pb2.MoveSessionsRequest(share=1.0), metadata=bearer(door.acme)),
        server.GetStatistics(server_pb2.GetStatisticsRequest(), metadata=bearer(door.acme)),
        server.ListQuarantine(server_pb2.ListQuarantineRequest(), metadata=bearer(door.acme)),
        inference.Step(step_request(), metadata=bearer(door.watcher)),
        inference.Stream(metadata=bearer(door.watcher)).read(),
    ]
    for call in refused:
        failure = await failing(call)
        assert (failure.code, failure.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED"), failure
    for secret in (door.acme, door.watcher):
        assert (await models.ListModels(model_pb2.ListModelsRequest(), metadata=bearer(secret))).models
    assert await server.GetStatistics(server_pb2.GetStatisticsRequest(), metadata=bearer(door.watcher))
    assert await models.LoadModel(model_pb2.LoadModelRequest(name=MODEL), metadata=bearer(door.operator))


def test_every_method_has_a_right_and_nothing_of_an_operators_is_everybodys(models_dir: Path) -> None:
    known = {name: rights.right_of(name) for name in _methods()}
    assert {name.rpartition("/")[2] for name, right in known.items() if right == ADMIN} == {
        "LoadModel", "UnloadModel", "SetAlias", "RepositoryModelLoad", "RepositoryModelUnload", "MoveSessions",
        "GetStatistics", "ModelStatistics", "ListQuarantine", "FreeQuarantined",
    }  # fmt: skip
    assert rights.right_of("/statestream.v1.InferenceService/WhatIsToCome") == STEP
    assert set(rights.OPEN) <= {*known}


def _methods() -> list[str]:
    from statestream.v1 import inference_pb2, session_pb2
    from statestream_server.edges.oip import oip_pb2

    files = (inference_pb2, session_pb2, model_pb2, server_pb2, health_pb2, oip_pb2)
    found = [(service, method) for file in files for service in file.DESCRIPTOR.services_by_name.values()
             for method in service.methods]  # fmt: skip
    return [
        f"/{'inference.GRPCInferenceService' if service.name == 'GRPCInferenceService' else service.full_name}"
        f"/{method.name}"
        for service, method in found
    ]


@pytest.mark.parametrize("twin", ["aio", "sync"])
async def test_a_revoked_token_ends_streams_and_says_so(local: Local, door: Door, twin: str) -> None:
    """Those of other tokens go on; who comes later with it hears the same."""
    stays = await aio.connect(local.address, token=door.other)
    if twin == "aio":
        client: Any = await aio.connect(local.address, token=door.acme)
        session = await client.session(MODEL, id="a")
        await session.step(1.0)
    else:
        client = await asyncio.to_thread(statestream.connect, local.address, token=door.acme)
        session = await asyncio.to_thread(client.session, MODEL, id="a")
        await asyncio.to_thread(session.step, 1.0)
    kept = await stays.session(MODEL, id="a")
    assert float(np.asarray(await kept.step(5.0)).squeeze()) == 5
    tokens.revoke(door.path, door.acme_id)
    look(local.server.access)

    async def refused() -> str:
        while True:
            try:
                await (session.step(1.0) if twin == "aio" else asyncio.to_thread(session.step, 1.0))
            except statestream.Unauthenticated as error:
                return error.message

    said = await asyncio.wait_for(refused(), DEADLINE)
    assert door.acme_id in said or "not known" in said
    assert door.acme not in said
    assert float(np.asarray(await kept.step(5.0)).squeeze()) == 10
    await stays.close()
    await (client.close() if twin == "aio" else asyncio.to_thread(client.close))


@pytest.mark.parametrize("twin", ["aio", "sync"])
async def test_who_may_administer_alone_does_so_although_no_stream_is_open_to_them(
    local: Local, door: Door, twin: str
) -> None:
    """What needs a stream says at once which right is missing; as soon as the token has it, it works."""
    shown = [door.watcher]
    if twin == "aio":
        client: Any = await aio.connect(local.address, token=lambda: shown[0], retry_timeout=5)
    else:
        client = await asyncio.to_thread(statestream.connect, local.address, token=lambda: shown[0], retry_timeout=5)

    async def call(method: Any, *args: Any) -> Any:
        return await (method(*args) if twin == "aio" else asyncio.to_thread(method, *args))

    state = client._shards.first.state
    await local.until(lambda: state.denied is not None)
    for _ in range(20):  # Around and during streams that are asked for and refused.
        together: list[Any] = [call(client.session, MODEL), call(client.statistics)]
        opening, asked = await asyncio.gather(*together, return_exceptions=True)
        assert isinstance(opening, statestream.PermissionDenied)
        assert opening.message.startswith("this call needs the right 'step'")
        assert opening.metadata == {"right": "step"}
        assert not isinstance(asked, BaseException)
    shown[0] = door.acme
    session = await call(client.session, MODEL)
    assert float(np.asarray(await call(session.step, 5.0)).squeeze()) == 5
    assert state.denied is None
    with pytest.raises(statestream.PermissionDenied, match="needs the right 'admin'"):
        await call(client.statistics)
    await call(client.close)
    with pytest.raises(statestream.Closed):
        await call(client.statistics)


async def test_who_has_no_stream_finds_another_server_too(models_dir: Path, door: Door) -> None:
    async with serving(models_dir, tokens=door.path) as stays:
        async with serving(models_dir, tokens=door.path) as goes:
            client = await aio.connect(f"{goes.address},{stays.address}", token=door.watcher, retry_timeout=20)
            blocking = await asyncio.to_thread(
                statestream.connect, f"{goes.address},{stays.address}", token=door.watcher, retry_timeout=20
            )
            for one in (client, blocking):
                state = one._shards.first.state
                await goes.until(lambda state=state: state.denied is not None)
        await client.statistics()
        await asyncio.to_thread(blocking.statistics)
        with pytest.raises(statestream.PermissionDenied):
            await client.session(MODEL)
        await client.close()
        await asyncio.to_thread(blocking.close)


async def test_a_token_expires_under_a_stream(models_dir: Path, door: Door) -> None:
    secret, id = door.new("acme", seconds=1_000)
    async with serving(models_dir, tokens=door.path) as local:
        stream = inference_pb2_grpc.InferenceServiceStub(local.channel).Stream(metadata=bearer(secret))
        await stream.initial_metadata()
        local.server.access._clock = lambda: time.time() + 2_000
        local.server.access.look()
        failure = await failing(stream.read())
        assert failure.reason == "UNAUTHENTICATED"
        assert f"{id} has expired" in failure.message
        call = server_pb2_grpc.ServerServiceStub(local.channel).GetServerInfo
        assert "expired" in (await failing(call(server_pb2.GetServerInfoRequest(), metadata=bearer(secret)))).message
        assert not local.server.streams.handles


@pytest.mark.parametrize("turns", [0, 3])
async def test_a_token_expires_while_the_headers_of_an_answer_leave(local: Local, door: Door, turns: int) -> None:
    """Its caller hears of it all the same: grpcio takes no end of a call whose headers are under way."""
    assert local.server.access is not None
    stream = inference_pb2_grpc.InferenceServiceStub(local.channel).Stream(metadata=bearer(door.acme))
    headers = asyncio.ensure_future(stream.initial_metadata())
    async with asyncio.timeout(DEADLINE):
        while not any(one._tasks for one in local.server.access._grants.values()):  # noqa: ASYNC110  # That very turn.
            await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    local.server.access._clock = lambda: time.time() + 2 * YEAR
    local.server.access.look()
    assert (await failing(stream.read())).reason == "UNAUTHENTICATED"
    await headers


async def test_a_half_written_file_keeps_the_tokens_that_are_known(
    models_dir: Path, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(door.path)
    whole = door.path.read_bytes()
    held = access.grant(bearer(door.other))
    for cut in (0, *range(1, len(whole), 97), whole.index(b"[[token]]", 1), whole.rindex(b"[[token]]")):
        door.path.write_bytes(whole[:cut])
        access.look()
        assert not held.ended, cut  # What is cut between two tokens reads as a whole file, and so does an empty one.
    door.path.unlink()
    access.look()
    access.look()
    assert access.grant(bearer(door.other)).token.tenant == "other"
    door.path.write_bytes(whole)
    access.look()
    late, _ = door.new("late")
    look(access)
    assert access.grant(bearer(late)).token.tenant == "late"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("stay as they are" in text for text in warnings)
    assert sum(door.path.name in text and "No such file" in text for text in warnings) == 1


async def test_a_tokens_calls_are_counted_and_refused_before_they_cost_anything(models_dir: Path, door: Door) -> None:
    with door.path.open("a") as file:
        file.write("[limits]\nstreams = 2\nsessions = 3\n[tenant.other]\ncalls = 0\n")
    async with serving(models_dir, tokens=door.path) as local:
        inference = inference_pb2_grpc.InferenceServiceStub(local.channel)
        streams = [inference.Stream(metadata=bearer(door.acme)) for _ in range(2)]
        for stream in streams:
            await stream.initial_metadata()
        failure = await failing(inference.Stream(metadata=bearer(door.acme)).read())
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after
        assert "2 streams" in failure.message
        assert (await failing(inference.Step(step_request(), metadata=bearer(door.other)))).reason == "OVERLOADED"
        for name in "abc":
            await inference.Step(step_request(name), metadata=bearer(door.acme))
        failure = await failing(inference.Step(step_request("d"), metadata=bearer(door.acme)))
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_SESSIONS")
        await inference.Step(step_request("c"), metadata=bearer(door.acme))
        for stream in streams:
            stream.cancel()
        usage = local.server.access.usages["acme"]
        assert not usage.held["bytes"]
        with usage.holding("calls", nbytes=usage.limits.bytes):
            assert "bytes" in (await failing(inference.Step(step_request("a"), metadata=bearer(door.acme)))).message
        await local.until(lambda: not usage.held["streams"])
        assert usage.refused == 3
        assert not usage.held["calls"]


async def test_a_snapshot_of_another_tenant_is_not_restored(models_dir: Path, door: Door) -> None:
    admin, _ = door.new("other", STEP, ADMIN)
    async with serving(models_dir, tokens=door.path) as local:
        async with aio.connect(local.address, token=door.acme) as client:
            session = await client.session(MODEL, id="a")
            await session.step(3.0)
            snapshot = await session.snapshot()
            assert (await client.restore(snapshot, model=MODEL, id="b")) is not None
        async with aio.connect(local.address, token=door.other) as client:
            assert [each async for each in client.list_sessions()] == []
            with pytest.raises(statestream.PermissionDenied):
                await client.restore(snapshot, model=MODEL, id="b")
        async with aio.connect(local.address, token=admin) as client:
            moved = await client.restore(snapshot, model=MODEL, id="b")
            assert float(np.asarray(await moved.step(1.0)).squeeze()) == 4


async def test_no_token_is_in_a_log_an_error_a_repr_or_a_metric(
    models_dir: Path, door: Door, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At DEBUG, while something fails at every stage."""
    from statestream_server.edges.http.pages import ServerPages

    caplog.set_level(logging.DEBUG)
    said = list[str]()
    for edge in EDGES:
        async with serving(models_dir, tokens=door.path, edge=edge) as local:
            client = await aio.connect(local.address, token=lambda: door.acme)
            said += [repr(client), repr(client.settings), str(client.settings), repr(local.server.access.usages)]
            said += [repr(local.server.access.grant(bearer(door.acme))), repr(local.server.settings)]
            session = await client.session(MODEL, id="a")
            for method, args in (
                (session.step, ("x",)),
                (client.session, ("nothing",)),
                (client.load_model, ("nothing",)),
                (session.step, (np.zeros((3, 3, 3)),)),
            ):
                with pytest.raises((statestream.StatestreamError, ValueError, TypeError)) as caught:
                    await method(*args)
                said.append(repr(caught.getrepr(showlocals=False)) + str(caught.value))

            async def fails(*_: Any, **__: Any) -> Any:
                raise RuntimeError("a table has three legs")

            with monkeypatch.context() as patched:
                patched.setattr(local.server.unary, "target", fails)
                inference = inference_pb2_grpc.InferenceServiceStub(local.channel)
                said.append(str(await failing(inference.Step(step_request(), metadata=bearer(door.acme)))))
            page = await ServerPages(local.server, local.running.readiness).metrics()
            said.append(page.decode())
            await client.close()
            with pytest.raises(statestream.Unauthenticated) as refused:
                await aio.connect(local.address, token=door.acme + "x", connect_timeout=2)
            said.append(str(refused.value))
    assert "a table has three legs" in caplog.text
    for secret in (door.acme, door.acme + "x"):
        assert secret not in caplog.text
        assert not [text for text in said if secret in text]
    assert door.acme not in door.path.read_text()


class TestClient:
    def test_a_token_does_not_leave_the_machine_in_clear(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for address in ("models.example:8001", "10.0.0.1:1,localhost:2", "localhost.evil:1", "127.0.0.1.evil:80",
                        "dns:///10.0.0.1:5", "ipv4:10.0.0.1:5", "127.evil:8001"):  # fmt: skip
            for package in (statestream, aio):
                with pytest.raises(ValueError, match="in clear"):
                    package.connect(address, token="secret-secret")
        monkeypatch.setenv("STATESTREAM_TOKEN", "secret-secret")
        with pytest.raises(ValueError, match="STATESTREAM_TOKEN") as caught:
            statestream.connect("models.example:8001")
        assert "secret-secret" not in str(caught.value)

    def test_what_is_no_token_is_not_quoted(self) -> None:
        for wrong in ("with space-s3cret", "s3cret\n", "s3crét"):
            with pytest.raises(ValueError, match="token") as caught:
                statestream.connect(token=wrong)
            assert wrong not in str(caught.value)
        with pytest.raises(TypeError, match="token is of type bytes"):
            statestream.connect(token=b"s3cret")  # type: ignore[arg-type]
        assert "s3cret" not in repr(statestream.Settings(token="s3cret"))

    def test_tls_is_told_whole(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="belong together"):
            statestream.Tls(certificate=__file__)
        with pytest.raises(ValueError, match="no file is"):
            statestream.Tls(roots=tmp_path / "none.pem")
        with pytest.raises(TypeError, match="expected True, False"):
            statestream.connect(tls="yes")  # type: ignore[arg-type]


class TestFile:
    def run(self, door: Door, *args: str) -> Any:
        return CliRunner().invoke(command, [args[0], "--tokens", str(door.path), *args[1:]])

    def test_the_command_makes_lists_and_revokes(self, door: Door) -> None:
        made = self.run(door, "new", "--tenant", "fresh", "--rights", "step,admin", "--days", "2", "--note", 'a "b"\n')
        assert made.exit_code == 0, made.output
        secret = made.stdout.strip()
        assert secret.startswith("ss_")
        assert secret not in door.path.read_text()
        listed = json.loads(self.run(door, "ls", "--json").stdout)
        assert listed[-1]["tenant"] == "fresh"
        assert listed[-1]["note"] == 'a "b"\n'
        assert secret not in self.run(door, "ls").output
        assert door.path.stat().st_mode & 0o77 == 0
        gone = self.run(door, "revoke", listed[-1]["id"])
        assert gone.exit_code == 0, gone.output
        assert len(json.loads(self.run(door, "ls", "--json").stdout)) == len(listed) - 1
        assert "no token called" in self.run(door, "revoke", "nobody").output

    def test_what_people_wrote_stays(self, door: Door) -> None:
        text = door.path.read_text().replace("[[token]]", "# ours\n[[token]]", 1) + "\n[tenant.acme]\nsessions = 5\n"
        door.path.write_text(text)
        tokens.revoke(door.path, door.acme_id)
        left = door.path.read_text()
        assert "# ours" in left
        assert tokens.parse(left.encode(), "x").limits_of("acme").sessions == 5

    @pytest.mark.parametrize(
        "text",
        [
            "x = 1", "[[token]]", "token = 1", "tenant = 1", "[limits]\nsessions = -1", "[limits]\nsessions = true",
            "[limits]\nnothing = 1", "[tenant]\nacme = 1", "[[token]]\nid = 'a'\nhash = 's3cret'", "\udcff",
            f"[[token]]\nid='a'\nhash='{'a' * 64}'\ntenant='t'\nrights=['all']\nexpires=2030-01-01T00:00:00Z",
            f"[[token]]\nid='a'\nhash='{'a' * 64}'\ntenant='t'\nrights=['step']\nexpires=2030-01-01T00:00:00",
            f"[[token]]\nid='a'\nhash='{'a' * 64}'\ntenant='t\0'\nrights=['step']\nexpires=2030-01-01T00:00:00Z",
            "a = [" * 3000,
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_told_without_its_value(self, text: str) -> None:
        with pytest.raises(TokensError) as caught:
            tokens.parse(text.encode(errors="surrogateescape"), "tokens.toml")
        assert str(caught.value).startswith("tokens.toml")
        assert "s3cret" not in str(caught.value)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_tokens_or_refused(self, data: bytes) -> None:
        with contextlib.suppress(TokensError):
            tokens.parse(data, "x")

    @given(st.lists(st.tuples(st.sampled_from(["authorization", "x"]), st.text() | st.binary()), max_size=3))
    def test_any_header_is_refused(self, headers: list[tuple[str, str | bytes]]) -> None:
        access = _empty()
        with pytest.raises(errors.Unauthenticated):
            access.grant(headers)


def _empty() -> Access:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        return Access(Path(file.name))


async def test_who_shows_no_token_has_no_room_for_messages(models_dir: Path, door: Door) -> None:
    """Over h2 a call is refused when its headers come; health is asked by so many at a time at most."""
    async with serving(models_dir, tokens=door.path, edge="h2") as local:
        call = local.channel.unary_unary("/statestream.v1.InferenceService/Step", request_serializer=lambda data: data)
        for _ in range(20):
            assert (await failing(call(b"x" * (1 << 20)))).reason == "UNAUTHENTICATED"
        stub = health_pb2_grpc.HealthStub(local.channel)
        watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(300)]
        results = await asyncio.gather(*(call.read() for call in watching), return_exceptions=True)
        refused = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
        assert len(refused) == 300 - chain._MOST_STRANGERS
        for call in watching:
            call.cancel()
        await local.until(lambda: chain._strangers == 0)


async def test_a_tenants_bytes_and_waits_are_asked_for_before_a_body_over_rest_is_read(
    models_dir: Path, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over gRPC: what a body says of its length, what it brings beyond, and how long its step would wait."""
    with door.path.open("a") as file:
        file.write("[tenant.acme]\nbytes = 100_000\n")
    async with serving(models_dir, tokens=door.path, http_port=0) as local:
        assert local.server.access is not None

        async def asked(secret: str, headers: str, body: bytes = b"") -> tuple[asyncio.StreamReader, Any]:
            reader, writer = await asyncio.open_connection("127.0.0.1", local.running.http_port)
            head = "POST /v2/models/counter/infer HTTP/1.1\r\nHost: a\r\n"
            writer.write(f"{head}Authorization: Bearer {secret}\r\n{headers}\r\n\r\n".encode() + body)
            await writer.drain()
            return reader, writer

        async def refused(secret: str, headers: str, body: bytes = b"") -> bytes:
            reader, writer = await asked(secret, headers, body)
            said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
            writer.close()
            return said

        _, first = await asked(door.acme, "Content-Length: 90000", b"{")
        await local.until(lambda: local.server.access.usages["acme"].held.get("bytes"))
        for said in (
            await refused(door.acme, "Content-Length: 20000"),
            await refused(door.acme, "Transfer-Encoding: chunked", b"4e20\r\n" + bytes(20_000)),
        ):
            assert b" 429 " in said
            assert b"retry-after: 1" in said.lower()
        usage = local.server.access.usages["acme"]
        await local.until(lambda: usage.held["bytes"] == 90_000)
        assert usage.refused == 2
        first.close()
        await local.until(lambda: usage.held["bytes"] == 0)
        # One that is alone may be as long as a message may.
        _, writer = await asked(door.acme, "Transfer-Encoding: chunked", b"30d40\r\n" + bytes(200_000))
        await local.until(lambda: usage.held["bytes"] == 200_000)
        writer.close()
        await local.until(lambda: usage.held["bytes"] == 0)
        monkeypatch.setattr(local.server.budgets.steps, "_wait", lambda tenant: 3.0)
        with local.server.budgets.steps.holding(1):
            said = await refused(door.acme, "Content-Length: 90000")
        assert b" 429 " in said
        assert b"retry-after: 3" in said.lower()
