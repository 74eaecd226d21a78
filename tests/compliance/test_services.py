"""SessionService, ModelService, ServerService, health and reflection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2, server_pb2, server_pb2_grpc
from statestream.v1 import session_pb2 as sessions
from tests.support.arrays import arrays_of, same_bits
from tests.support.calls import Caller, everything, failing
from tests.support.speaker import Speaker, fresh_id
from tests.support.subject import Subject

SERVICES = [
    "statestream.v1.InferenceService",
    "statestream.v1.SessionService",
    "statestream.v1.ModelService",
    "statestream.v1.ServerService",
]


async def _get(caller: Caller, model: str, name: str) -> sessions.Session:
    session: sessions.Session = (
        await caller.sessions.GetSession(sessions.GetSessionRequest(model=model, session_id=name))
    ).session
    return session


async def test_open_session_creates_then_resumes(caller: Caller, subject: Subject) -> None:
    """OpenSession is an open without a stream; its epoch rises."""
    request = sessions.OpenSessionRequest(model=subject.name, session_id=fresh_id())
    first, second = await caller.sessions.OpenSession(request), await caller.sessions.OpenSession(request)
    assert (first.created, second.created) == (True, False)
    assert second.session.epoch > first.session.epoch
    request.mode = pb.OPEN_MODE_CREATE
    assert (await failing(caller.sessions.OpenSession(request))).reason == "SESSION_EXISTS"


async def test_get_session_describes_it(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """Model, version, id, position, durable position, epoch, residence, last use."""
    name = fresh_id()
    opened = await speaker.open_one(name)
    await speaker.step(0, 0, subject.random(4))
    found = await _get(caller, subject.name, name)
    assert (found.model, found.version, found.id) == (subject.name, opened.version, name)
    assert (found.position, found.epoch, found.residence) == (4, opened.epoch, sessions.RESIDENCE_RESIDENT)
    assert found.durable_position <= 4
    assert found.last_used_time.seconds > 1_600_000_000


async def test_an_unknown_session_is_not_found(caller: Caller, subject: Subject) -> None:
    """Every call about a session that does not exist is SESSION_NOT_FOUND; none creates one."""
    name, stub = fresh_id(), caller.sessions
    ask: dict[str, Any] = {"model": subject.name, "session_id": name}
    calls = [
        stub.GetSession(sessions.GetSessionRequest(**ask)),
        stub.SnapshotSession(sessions.SnapshotSessionRequest(**ask)),
        stub.FlushSession(sessions.FlushSessionRequest(**ask)),
        stub.DeleteSession(sessions.DeleteSessionRequest(**ask)),
        stub.ForkSession(sessions.ForkSessionRequest(**ask, fork_id=fresh_id())),
        stub.GetSession(sessions.GetSessionRequest(**ask)),
    ]
    for call in calls:
        failure = await failing(call)
        assert (failure.code, failure.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")


async def test_list_sessions_walks_pages_in_order(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """Pages hold at most `page_size`, in the order of ids; the tokens lead through all of them, each once."""
    prefix = fresh_id("list")
    names = sorted(f"{prefix}-{index:02}" for index in range(23))
    await speaker.open(*names)
    found, token, pages = list[str](), "", 0
    while True:
        request = sessions.ListSessionsRequest(model=subject.name, page_size=7, page_token=token)
        page = await caller.sessions.ListSessions(request)
        assert len(page.sessions) <= 7
        found += [session.id for session in page.sessions]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert found == sorted(set(found))
    assert [name for name in found if name.startswith(prefix)] == names


async def test_list_sessions_refuses_bad_pages(caller: Caller, subject: Subject) -> None:
    """A page of more than 1,000, and a token of somebody else."""
    many = sessions.ListSessionsRequest(model=subject.name, page_size=1001)
    assert (await failing(caller.sessions.ListSessions(many))).fields == ["page_size"]
    for token in ("nonsense", "W10=", "e30=", "WzEsMiwzXQ==", "NQ==", "bnVsbA==", "WyJtIiwgIlx1ZDgwMCJd"):
        request = sessions.ListSessionsRequest(model=subject.name, page_token=token)
        assert (await failing(caller.sessions.ListSessions(request))).fields == ["page_token"]


async def test_a_fork_goes_on_as_its_origin_would(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """A fork stands where its origin stood; the two do not touch each other afterwards."""
    origin, fork, later = fresh_id(), fresh_id(), subject.random(4, 7)
    await speaker.open_one(origin)
    await speaker.step(0, 0, subject.random(6))
    request = sessions.ForkSessionRequest(model=subject.name, session_id=origin, fork_id=fork)
    made = (await caller.sessions.ForkSession(request)).session
    assert (made.id, made.position) == (fork, 6)
    await speaker.step(0, 6, subject.random(3, 8))
    twin = await caller.step(subject.name, fork, later, position=6)
    snap = sessions.SnapshotSessionRequest(model=subject.name, session_id=origin)
    assert (await caller.sessions.SnapshotSession(snap)).position == 9
    third = fresh_id()
    await speaker.open_one(third, 5)
    await speaker.step(5, 0, subject.random(6))
    straight = await speaker.step(5, 6, later)
    assert same_bits(arrays_of(twin.outputs), straight.outputs)


async def test_a_copy_with_an_epoch_has_all_that_was_answered_under_it(
    caller: Caller, subject: Subject, speaker: Speaker
) -> None:
    """A claim that goes on with the state is no reason to refuse; one that began anew is, whatever the position."""
    name = fresh_id()
    first = await speaker.open_one(name)
    await speaker.step(0, 0, subject.random(2))
    second = await speaker.open_one(name)
    assert second.epoch > first.epoch
    ask: dict[str, Any] = {"model": subject.name, "session_id": name}
    for epoch in (0, first.epoch, second.epoch):
        snapshot = sessions.SnapshotSessionRequest(**ask, epoch=epoch)
        assert (await caller.sessions.SnapshotSession(snapshot)).position == 2
        fork = sessions.ForkSessionRequest(**ask, fork_id=fresh_id(), epoch=epoch)
        assert (await caller.sessions.ForkSession(fork)).session.position == 2
    await speaker.open_one(name, mode=pb.OPEN_MODE_REPLACE)
    await speaker.step(0, 0, subject.random(2))
    for epoch in (first.epoch, second.epoch):
        snapshot = sessions.SnapshotSessionRequest(**ask, epoch=epoch)
        assert (await failing(caller.sessions.SnapshotSession(snapshot))).reason == "SESSION_MOVED"
        fork = sessions.ForkSessionRequest(**ask, fork_id=fresh_id(), epoch=epoch)
        assert (await failing(caller.sessions.ForkSession(fork))).reason == "SESSION_MOVED"
        forecast = pb.ForecastRequest(**ask, horizon=1, epoch=epoch)
        refused = await failing(everything(caller.inference.Forecast(forecast)))
        assert refused.reason == "SESSION_MOVED"


async def test_forking_again_is_harmless_while_nothing_moved(caller: Caller, subject: Subject) -> None:
    """The fork's id is the caller's choice: a repeated call finds the copy; another copy is SESSION_EXISTS."""
    origin, fork = fresh_id(), fresh_id()
    await caller.step(subject.name, origin, subject.random(3))
    request = sessions.ForkSessionRequest(model=subject.name, session_id=origin, fork_id=fork)
    first = (await caller.sessions.ForkSession(request)).session
    again = (await caller.sessions.ForkSession(request)).session
    assert (again.id, again.position) == (first.id, first.position)
    await caller.step(subject.name, origin, subject.random(1))
    assert (await failing(caller.sessions.ForkSession(request))).reason == "SESSION_EXISTS"


async def test_a_fork_is_durable_when_it_returns(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """The copy survives a crash right after the answer, where the server keeps sessions at all."""
    origin, fork = fresh_id(), fresh_id()
    opened = await speaker.open_one(origin)
    if opened.durability == pb.DURABILITY_MODE_NONE:
        pytest.skip("the server keeps nothing")
    await speaker.step(0, 0, subject.random(3))
    request = sessions.ForkSessionRequest(model=subject.name, session_id=origin, fork_id=fork)
    assert (await caller.sessions.ForkSession(request)).session.durable_position == 3


async def test_a_snapshot_restores_to_the_same_bits(caller: Caller, subject: Subject) -> None:
    """A restored session stands where the snapshot was taken and answers as the origin."""
    origin, copy, later = fresh_id(), fresh_id(), subject.random(5, 3)
    await caller.step(subject.name, origin, subject.random(8))
    snapshot = await caller.sessions.SnapshotSession(
        sessions.SnapshotSessionRequest(model=subject.name, session_id=origin)
    )
    assert snapshot.position == 8
    restore = sessions.RestoreSessionRequest(model=subject.name, session_id=copy, snapshot=snapshot.snapshot)
    made = (await caller.sessions.RestoreSession(restore)).session
    assert (made.id, made.position) == (copy, 8)
    one = await caller.step(subject.name, origin, later, position=8)
    two = await caller.step(subject.name, copy, later, position=8)
    assert same_bits(arrays_of(one.outputs), arrays_of(two.outputs))


async def test_restore_replaces_a_session_and_fences_its_writer(
    caller: Caller, subject: Subject, speaker: Speaker
) -> None:
    """Restoring over a session raises its epoch; whoever had it open loses it."""
    name = fresh_id()
    opened = await speaker.open_one(name)
    await speaker.step(0, 0, subject.random(2))
    ask: dict[str, Any] = {"model": subject.name, "session_id": name}
    snapshot = (await caller.sessions.SnapshotSession(sessions.SnapshotSessionRequest(**ask))).snapshot
    await speaker.step(0, 2, subject.random(5))
    made = (await caller.sessions.RestoreSession(sessions.RestoreSessionRequest(**ask, snapshot=snapshot))).session
    assert made.position == 2
    assert made.epoch > opened.epoch
    await speaker.unasked(lambda: speaker.notices)
    assert speaker.notices[0].failure.reason == "SESSION_MOVED"


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\0" * 64])
async def test_restoring_nonsense_is_refused(caller: Caller, subject: Subject, damage: bytes) -> None:
    """What is no snapshot: SNAPSHOT_INVALID; nothing is made."""
    name = fresh_id()
    request = sessions.RestoreSessionRequest(model=subject.name, session_id=name, snapshot=damage)
    failure = await failing(caller.sessions.RestoreSession(request))
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "SNAPSHOT_INVALID")
    get = sessions.GetSessionRequest(model=subject.name, session_id=name)
    assert (await failing(caller.sessions.GetSession(get))).reason == "SESSION_NOT_FOUND"


async def test_flush_session_makes_it_durable(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """After a flush the durable position is the position, where the server keeps sessions at all."""
    name = fresh_id()
    opened = await speaker.open_one(name)
    await speaker.step(0, 0, subject.random(5))
    flushed = await caller.sessions.FlushSession(sessions.FlushSessionRequest(model=subject.name, session_id=name))
    if opened.durability != pb.DURABILITY_MODE_NONE:
        assert flushed.durable_position == 5


async def test_delete_session_tells_its_stream(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """A session that somebody deletes leaves its stream with a notice; deleting it again is SESSION_NOT_FOUND."""
    name = fresh_id()
    await speaker.open_one(name)
    request = sessions.DeleteSessionRequest(model=subject.name, session_id=name)
    await caller.sessions.DeleteSession(request)
    await speaker.unasked(lambda: speaker.notices)
    assert speaker.notices[0].failure.reason == "SESSION_NOT_FOUND"
    assert (await failing(caller.sessions.DeleteSession(request))).reason == "SESSION_NOT_FOUND"


async def test_models_are_listed_in_order_and_described(caller: Caller, subject: Subject) -> None:
    """Every model by name, then version, with kind, digest and signature."""
    models = (await caller.models.ListModels(model_pb2.ListModelsRequest())).models
    keys = [(model.name, model.version) for model in models]
    assert keys == sorted(keys)
    (mine,) = [model for model in models if model.name == subject.name and model.is_default]
    one = (await caller.models.GetModel(model_pb2.GetModelRequest(name=subject.name))).model
    assert (one.name, one.version, one.digest) == (mine.name, mine.version, mine.digest)
    assert one.kind == model_pb2.MODEL_KIND_SESSION
    assert len(one.digest) == 64
    assert one.signature == subject.signature
    assert one.batch_invariance != model_pb2.BATCH_INVARIANCE_UNSPECIFIED


async def test_resident_sessions_are_counted(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """A model tells how many sessions are in memory."""
    request = model_pb2.GetModelRequest(name=subject.name)
    await speaker.open(*(fresh_id() for _ in range(3)))
    assert (await caller.models.GetModel(request)).model.resident_sessions >= 3


async def test_unknown_models_are_not_found(caller: Caller, subject: Subject) -> None:
    """GetModel, LoadModel and UnloadModel of what is not there; the message lists what is."""
    for call in (
        caller.models.GetModel(model_pb2.GetModelRequest(name="no-such-model")),
        caller.models.LoadModel(model_pb2.LoadModelRequest(name="no-such-model")),
        caller.models.UnloadModel(model_pb2.UnloadModelRequest(name="no-such-model")),
        caller.models.GetModel(model_pb2.GetModelRequest(name=subject.name, version=10**9)),
    ):
        failure = await failing(call)
        assert (failure.code, failure.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")


async def test_loading_a_loaded_model_changes_nothing(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """LoadModel of a loaded version answers with it; its sessions go on."""
    await speaker.open_one(fresh_id())
    before = (await caller.models.GetModel(model_pb2.GetModelRequest(name=subject.name))).model
    loaded = (
        await caller.models.LoadModel(model_pb2.LoadModelRequest(name=subject.name, version=before.version))
    ).model
    assert loaded.digest == before.digest
    await speaker.step(0, 0, subject.random(2))


async def test_a_model_with_sessions_is_not_unloaded(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """UnloadModel refuses a version with open sessions."""
    await speaker.open_one(fresh_id())
    failure = await failing(caller.models.UnloadModel(model_pb2.UnloadModelRequest(name=subject.name)))
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "MODEL_IN_USE")
    await speaker.step(0, 0, subject.random(1))


async def test_server_info(channel: object) -> None:
    """Version, protocol, limits, durability, store, device, fingerprint."""
    stub = server_pb2_grpc.ServerServiceStub(channel)
    info = await stub.GetServerInfo(server_pb2.GetServerInfoRequest())
    again = await stub.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert info.protocol == 1
    assert info.version
    assert info.server_id
    assert info.server_id == again.server_id
    assert not info.draining
    limits = info.limits
    assert min(limits.max_chunk_steps, limits.max_message_bytes, limits.max_unacknowledged_chunks) > 0
    assert min(limits.max_sessions, limits.max_queued_bytes, limits.max_horizon) > 0
    assert info.store.kind in ("memory", "sqlite", "redis")
    assert info.device
    assert info.fingerprint
    assert (info.durability == pb.DURABILITY_MODE_NONE) == (info.store.kind == "memory")


@pytest.mark.parametrize(("newest", "oldest", "spoken"), [(0, 0, 1), (1, 1, 1), (7, 1, 1), (7, 2, 0)])
async def test_one_version_of_the_protocol_is_agreed_on(channel: object, newest: int, oldest: int, spoken: int) -> None:
    """The newest that both speak; where there is none the answer is UNSUPPORTED and has the server's range."""
    stub = server_pb2_grpc.ServerServiceStub(channel)
    request = server_pb2.GetServerInfoRequest(protocol=newest, oldest_protocol=oldest, client="a test")
    if spoken:
        assert (await stub.GetServerInfo(request)).protocol == spoken
        return
    failure = await failing(stub.GetServerInfo(request))
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "UNSUPPORTED")
    assert failure.metadata["newest_protocol"] == failure.metadata["oldest_protocol"] == "1"


@pytest.mark.parametrize("version", ["1", "2", "1.0", "-1", "9" * 12])
async def test_a_call_in_a_version_that_is_not_spoken_is_refused(channel: object, version: str) -> None:
    """Its metadata `x-statestream-protocol` says which one it is written in."""
    call = server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(
        server_pb2.GetServerInfoRequest(), metadata=(("x-statestream-protocol", version),)
    )
    if version == "1":
        assert (await call).protocol == 1
        return
    failure = await failing(call)
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "UNSUPPORTED")


async def test_health(channel: object) -> None:
    """grpc.health.v1 for the server and each service; an unknown service is NOT_FOUND."""
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", *SERVICES):
        checked = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert checked.status == health_pb2.HealthCheckResponse.SERVING, service


async def test_reflection_lists_all_services(channel: object) -> None:
    """Server reflection lists every service, and has the files that describe them."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def requests() -> object:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        for service in SERVICES:
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)

    answers = await asyncio.wait_for(everything(stub.ServerReflectionInfo(requests())), 20)
    names = {service.name for service in answers[0].list_services_response.service}
    assert {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= names
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in answers[1:])
