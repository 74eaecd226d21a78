"""Sessions and the versions of their model: pinned until they move."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2, session_pb2
from tests.compliance.conftest import Target
from tests.support.arrays import same_bits, tensor, u64
from tests.support.calls import Caller, everything, failing
from tests.support.speaker import Speaker, fresh_id
from tests.support.subject import Subject


@dataclass(frozen=True)
class Versions:
    """Versions of the model under test.

    Attributes:
        newest: The one that serves by default.
        alike: An older one that keeps the same state.
        unlike: One that keeps another, or None.
    """

    newest: int
    alike: int
    unlike: int | None


@pytest.fixture
async def versions(caller: Caller, target: Target) -> Versions:
    newest = (await caller.models.GetModel(model_pb2.GetModelRequest(name=target.model))).model
    alike, unlike = None, None
    for version in range(newest.version - 1, 0, -1):
        try:
            request = model_pb2.LoadModelRequest(name=target.model, version=version)
            found = (await caller.models.LoadModel(request)).model
        except grpc.aio.AioRpcError:
            continue
        if list(found.signature.states) == list(newest.signature.states) and found.digest != newest.digest:
            alike = alike or version
        elif list(found.signature.states) != list(newest.signature.states):
            unlike = unlike or version
    if alike is None:
        pytest.skip("the target has no older version of the model that keeps the same state")
    return Versions(newest.version, alike, unlike)


async def states_of(caller: Caller, model: str, session: str) -> dict[str, np.ndarray]:
    """The states of a session, from its snapshot."""
    request = session_pb2.SnapshotSessionRequest(model=model, session_id=session)
    blob = (await caller.sessions.SnapshotSession(request)).snapshot
    length = int.from_bytes(blob[:8], "little")
    header, data = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    header.pop("__metadata__")
    kinds: dict[str, Any] = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "BOOL": "?"}
    return {
        name: np.frombuffer(data[slice(*about["data_offsets"])], kinds[about["dtype"]]).reshape(about["shape"])
        for name, about in header.items()
    }


async def test_a_session_stays_with_its_version(speaker: Speaker, subject: Subject, versions: Versions) -> None:
    """Pinned from its first open; asked for another version it is MODEL_CHANGED and goes on as it was."""
    name, inputs = fresh_id(), subject.random(3)
    assert (await speaker.open_one(name, version=versions.alike)).version == versions.alike
    await speaker.step(0, 0, inputs)
    failure = await speaker.not_opened(name, 1, version=versions.newest)
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "MODEL_CHANGED")
    assert not speaker.notices
    await speaker.step(0, 3, inputs)
    again = await speaker.open_one(name, 2)
    assert (again.version, again.position) == (versions.alike, 6)


async def test_upgrade_moves_state_position_and_replies(
    speaker: Speaker, other: Speaker, caller: Caller, subject: Subject, versions: Versions
) -> None:
    """The state that the old version left is the one the new version goes on from, in every bit.

    The claim is one like any other: the epoch rises, the stream that had the session is told. What was moved is
    durable; a reply that nobody acknowledged is there still.
    """
    name, inputs = fresh_id(), subject.random(5)
    opened = await other.open_one(name, version=versions.alike)
    first = await other.step(0, 0, inputs)
    states = await states_of(caller, subject.name, name)
    moved = await speaker.open_one(name, version=versions.newest, upgrade=True)
    assert (moved.version, moved.position, moved.created) == (versions.newest, 5, False)
    assert moved.durable == 5 or moved.durability == pb.DURABILITY_MODE_NONE
    assert moved.epoch > opened.epoch
    await other.unasked(lambda: other.notices)
    assert [notice.failure.reason for notice in other.notices] == ["SESSION_MOVED"]
    repeated = await speaker.step(0, 0, inputs)
    assert same_bits(first.outputs, repeated.outputs), "the kept reply, not another run"
    start = [tensor(s.input, states[s.input][None]) for s in subject.signature.states]
    await speaker.open_one(fresh_id(), 1, version=versions.newest, initial_states=start)
    await speaker.open_one(fresh_id(), 2, version=versions.alike, initial_states=start)
    after, twin, old = (
        await speaker.step(0, 5, inputs),
        await speaker.step(1, 0, inputs),
        await speaker.step(2, 0, inputs),
    )
    assert same_bits(after.outputs, twin.outputs)
    assert not same_bits(after.outputs, old.outputs)
    request = session_pb2.GetSessionRequest(model=subject.name, session_id=name)
    found = (await caller.sessions.GetSession(request)).session
    assert (found.version, found.position, found.epoch) == (versions.newest, 10, moved.epoch)


async def test_an_upgrade_may_be_repeated(speaker: Speaker, subject: Subject, versions: Versions) -> None:
    """A session that is there already is opened like any other; so a caller that heard nothing asks again."""
    name, inputs = fresh_id(), subject.random(2)
    await speaker.open_one(name, version=versions.alike)
    await speaker.step(0, 0, inputs)
    for turn in range(3):
        opened = await speaker.open_one(name, turn, version=versions.newest, upgrade=True)
        assert (opened.version, opened.position) == (versions.newest, 2 + 2 * turn)
        await speaker.step(turn, opened.position, inputs)
    plain = await speaker.open_one(name, 9)
    assert (plain.version, plain.position) == (versions.newest, 8)


async def test_a_downgrade_is_the_same(speaker: Speaker, subject: Subject, versions: Versions) -> None:
    """There and back without a step between: every bit is as if nothing had been."""
    name, twin, inputs = fresh_id(), fresh_id(), subject.random(4)
    await speaker.open(name, twin, version=versions.alike)
    for handle in range(2):
        await speaker.step(handle, 0, inputs)
    await speaker.open_one(name, 0, version=versions.newest, upgrade=True)
    back = await speaker.open_one(name, 0, version=versions.alike, upgrade=True)
    assert (back.version, back.position) == (versions.alike, 4)
    one, other = [await speaker.step(handle, 4, inputs) for handle in range(2)]
    assert same_bits(one.outputs, other.outputs)


async def test_without_a_version_sessions_move_to_the_default_one(
    speaker: Speaker, subject: Subject, versions: Versions
) -> None:
    """One frame moves sessions of several versions to one; a new session starts there."""
    old, current, fresh = fresh_id(), fresh_id(), fresh_id()
    await speaker.open_one(old, version=versions.alike)
    await speaker.open_one(current)
    opened = await speaker.open(old, current, fresh, upgrade=True)
    assert {getattr(session, "version", session) for session in opened.values()} == {versions.newest}
    assert opened[2].created  # type: ignore[union-attr]
    await speaker.send_chunk([0, 1, 2], [0, 0, 0], [subject.random(1)] * 3)
    one, two, three = await speaker.answers(3)
    assert same_bits(one.outputs, two.outputs)
    assert same_bits(two.outputs, three.outputs)


async def test_a_state_that_does_not_fit_stays_where_it_is(
    speaker: Speaker, other: Speaker, caller: Caller, subject: Subject, versions: Versions
) -> None:
    """MODEL_CHANGED names the state that differs; nothing was claimed, and the neighbours in the frame move."""
    if versions.unlike is None:
        pytest.skip("the target has no version of the model that keeps another state")
    name, neighbour, inputs = fresh_id(), fresh_id(), subject.random(2)
    before = await other.open_one(name, version=versions.unlike)
    await other.step(0, 0, inputs)
    await speaker.open_one(neighbour, version=versions.alike)
    found = await speaker.open(name, neighbour, handles=[1, 2], version=versions.newest, upgrade=True)
    failure = found[1]
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "MODEL_CHANGED")  # type: ignore[union-attr]
    assert failure.metadata["version"] == str(versions.unlike)  # type: ignore[union-attr]
    assert failure.metadata["column"] in [state.input for state in subject.signature.states]  # type: ignore[union-attr]
    assert found[2].version == versions.newest  # type: ignore[union-attr]
    await other.step(0, 2, inputs)
    assert not other.notices
    request = session_pb2.GetSessionRequest(model=subject.name, session_id=name)
    described = (await caller.sessions.GetSession(request)).session
    assert (described.version, described.epoch, described.position) == (versions.unlike, before.epoch, 4)
    anew = await speaker.open_one(name, 1, version=versions.newest, mode=pb.OPEN_MODE_REPLACE)
    assert (anew.version, anew.position, anew.created) == (versions.newest, 0, True)
    await other.unasked(lambda: other.notices)


async def test_replay_positions_hold_for_an_upgrade_too(speaker: Speaker, subject: Subject, versions: Versions) -> None:
    """A caller that lost steps hears STATE_LOST; the session stays with its version."""
    name = fresh_id()
    await speaker.open_one(name, version=versions.alike)
    await speaker.step(0, 0, subject.random(2))
    lost = {"version": versions.newest, "upgrade": True, "replay_positions": u64(7)}
    assert (await speaker.not_opened(name, 1, **lost)).reason == "STATE_LOST"
    assert (await speaker.open_one(name, 1)).version == versions.alike


async def test_callers_without_a_stream_move_a_session_too(
    caller: Caller, subject: Subject, versions: Versions
) -> None:
    """OpenSession has the same; Step does not: it refuses another version than the session's."""
    name, inputs = fresh_id(), subject.random(2)
    assert (await caller.step(subject.name, name, inputs, version=versions.alike)).version == versions.alike
    refused = await failing(caller.step(subject.name, name, inputs, version=versions.newest))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "MODEL_CHANGED")
    forecast = pb.ForecastRequest(model=subject.name, session_id=name, version=versions.newest, horizon=1)
    assert (await failing(everything(caller.inference.Forecast(forecast)))).reason == "MODEL_CHANGED"
    request = session_pb2.OpenSessionRequest(model=subject.name, version=versions.newest, session_id=name, upgrade=True)
    opened = await caller.sessions.OpenSession(request)
    assert (opened.session.version, opened.session.position, opened.created) == (versions.newest, 2, False)
    answer = await caller.step(subject.name, name, inputs, version=versions.newest)
    assert (answer.version, answer.position) == (versions.newest, 4)


async def test_a_snapshot_is_restored_in_another_version_on_demand(
    caller: Caller, subject: Subject, versions: Versions
) -> None:
    """Without `upgrade` it goes where its digest is; another version is MODEL_CHANGED. With it the state must fit."""
    name = fresh_id()
    await caller.step(subject.name, name, subject.random(3), version=versions.alike)
    taken = await caller.sessions.SnapshotSession(
        session_pb2.SnapshotSessionRequest(model=subject.name, session_id=name)
    )

    async def restore(session: str, **more: Any) -> session_pb2.Session:
        request = session_pb2.RestoreSessionRequest(
            model=subject.name, session_id=session, snapshot=taken.snapshot, **more
        )
        return (await caller.sessions.RestoreSession(request)).session

    plain = await restore(fresh_id())
    assert (plain.version, plain.position) == (versions.alike, 3)
    refused = await failing(restore(fresh_id(), version=versions.newest))
    assert refused.reason == "MODEL_CHANGED"
    copy = fresh_id()
    moved = await restore(copy, version=versions.newest, upgrade=True)
    assert (moved.version, moved.position) == (versions.newest, 3)
    assert (await restore(fresh_id(), upgrade=True)).version == versions.newest
    one, other = await states_of(caller, subject.name, name), await states_of(caller, subject.name, copy)
    assert same_bits(one, other)
    if versions.unlike is not None:
        refused = await failing(restore(fresh_id(), version=versions.unlike, upgrade=True))
        assert refused.reason == "MODEL_CHANGED"
        assert refused.metadata["column"] in one
