"""Opening sessions: modes, epochs, positions, fencing, letting go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from statestream.signature import row_shape, start_row
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import server_pb2, server_pb2_grpc, session_pb2
from tests.support.arrays import same_bits, tensor, u64
from tests.support.calls import Caller, Failure, failing
from tests.support.speaker import Opened, Refusal, Speaker, fresh_id, next_incarnation
from tests.support.subject import Subject


async def test_create_refuses_a_session_that_exists(speaker: Speaker) -> None:
    """CREATE: the session must not exist yet."""
    name = fresh_id()
    assert (await speaker.open_one(name, mode=pb.OPEN_MODE_CREATE)).created
    failure = await speaker.not_opened(name, 1, mode=pb.OPEN_MODE_CREATE)
    assert (failure.code, failure.reason, failure.domain) == ("ALREADY_EXISTS", "SESSION_EXISTS", "statestream")


async def test_resume_refuses_a_session_that_does_not_exist(speaker: Speaker) -> None:
    """RESUME: the session must exist; a refused open creates nothing."""
    name = fresh_id()
    for _ in range(2):
        failure = await speaker.not_opened(name, mode=pb.OPEN_MODE_RESUME)
        assert (failure.code, failure.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")


async def test_either_creates_then_resumes(speaker: Speaker, subject: Subject) -> None:
    """EITHER (and not saying) creates where there is nothing, resumes where there is something."""
    name = fresh_id()
    first = await speaker.open_one(name)
    assert first.created
    assert first.position == first.durable == 0
    await speaker.step(0, 0, subject.random(3))
    again = await speaker.open_one(name, mode=pb.OPEN_MODE_EITHER, seen_epochs=u64(first.epoch))
    assert not again.created
    assert again.position == 3


async def test_replace_starts_at_zero(speaker: Speaker, subject: Subject) -> None:
    """REPLACE starts at position 0 with the start state, whatever was there before."""
    name, inputs = fresh_id(), subject.random(4)
    first = await speaker.open_one(name)
    once = await speaker.step(0, 0, inputs)
    replaced = await speaker.open_one(name, mode=pb.OPEN_MODE_REPLACE, seen_epochs=u64(first.epoch))
    assert replaced.created
    assert replaced.position == replaced.durable == 0
    assert replaced.epoch > first.epoch
    again = await speaker.step(0, 0, inputs)
    assert same_bits(once.outputs, again.outputs)


async def test_epochs_rise_with_every_claim(speaker: Speaker, other: Speaker) -> None:
    """Every open has an epoch above all before, also above one that only the caller saw."""
    name = fresh_id()
    epochs = [(await stream.open_one(name)).epoch for stream in (speaker, other, speaker)]
    assert epochs == sorted(set(epochs))
    seen = await speaker.open_one(name, seen_epochs=u64(1000))
    assert seen.epoch > 1000


async def test_one_frame_opens_many_and_errors_are_per_row(speaker: Speaker) -> None:
    """Sessions that cannot be opened are errors of their own; the others are open."""
    ids = [fresh_id() for _ in range(3)]
    await speaker.open_one(ids[1], 9)
    found = await speaker.open(*ids, handles=[4, 5, 6], mode=pb.OPEN_MODE_CREATE)
    assert isinstance(found[4], Opened)
    assert isinstance(found[5], Failure)
    assert isinstance(found[6], Opened)
    assert found[5].reason == "SESSION_EXISTS"


async def test_durability_mode_is_told(speaker: Speaker, caller: Caller) -> None:
    """Open returns the durability mode: the one that GetServerInfo tells."""
    info = await server_pb2_grpc.ServerServiceStub(speaker.channel).GetServerInfo(server_pb2.GetServerInfoRequest())
    opened = await speaker.open_one(fresh_id())
    assert opened.durability == info.durability != pb.DURABILITY_MODE_UNSPECIFIED


async def test_a_second_open_takes_the_session_with_its_position(
    speaker: Speaker, other: Speaker, subject: Subject
) -> None:
    """A second writer gets the session where it stands; the first stream is told and its handle is free."""
    name, inputs = fresh_id(), subject.random(2)
    await speaker.open_one(name)
    await speaker.step(0, 0, inputs)
    taken = await other.open_one(name, 3)
    assert (taken.position, taken.created) == (2, False)
    await speaker.unasked(lambda: speaker.notices)
    (notice,) = speaker.notices
    assert (notice.handle, notice.failure.code, notice.failure.reason) == (0, "ABORTED", "SESSION_MOVED")


async def test_late_frames_of_a_fenced_stream_are_never_applied(
    speaker: Speaker, other: Speaker, subject: Subject
) -> None:
    """Frames of the first writer that arrive after the second opened are refused; the session does not move."""
    name, inputs = fresh_id(), subject.random(2)
    await speaker.open_one(name)
    await other.open_one(name)
    await speaker.send_chunk([0], [0], [inputs])
    (row,) = await speaker.rows(1)
    assert isinstance(row, Refusal)
    assert row.failure.reason in ("SESSION_NOT_FOUND", "SESSION_MOVED")
    applied = await other.step(0, 0, inputs)
    assert applied.position == 0


async def test_a_lower_incarnation_is_refused(speaker: Speaker, other: Speaker, subject: Subject) -> None:
    """A claim below the last one is SESSION_MOVED, names the incarnation to exceed, and takes nothing."""
    name, older, newer = fresh_id(), next_incarnation(), next_incarnation()
    await speaker.open_one(name, incarnation=newer)
    failure = await other.not_opened(name, incarnation=older)
    assert (failure.code, failure.reason) == ("ABORTED", "SESSION_MOVED")
    assert failure.metadata["incarnation"] == str(newer)
    await speaker.step(0, 0, subject.random(1))
    assert not speaker.notices
    await other.open_one(name, incarnation=newer + 1)


@pytest.mark.parametrize("mode", [pb.OPEN_MODE_EITHER, pb.OPEN_MODE_RESUME])
async def test_a_claim_that_another_client_made_meanwhile_is_not_overtaken_unseen(
    speaker: Speaker, other: Speaker, mode: pb.OpenMode
) -> None:
    """Who opens again by itself names the epoch that it saw: SESSION_MOVED; who wants it names the one it hears of."""
    name = fresh_id()
    mine = await speaker.open_one(name)
    theirs = await other.open_one(name)
    for _ in range(2):
        failure = await speaker.not_opened(name, mode=mode, seen_epochs=u64(mine.epoch))
        assert failure.reason == "SESSION_MOVED"
        assert failure.metadata["epoch"] == str(theirs.epoch)
    for seen in (theirs.epoch, 0):
        await speaker.open_one(name, mode=mode, seen_epochs=u64(seen))
        theirs = await other.open_one(name)


async def test_a_replay_position_above_what_is_stored_is_state_lost(speaker: Speaker, subject: Subject) -> None:
    """A caller that can replay from 5 only has lost steps where the session is at 2: never a silent restart."""
    name = fresh_id()
    await speaker.open_one(name)
    await speaker.step(0, 0, subject.random(2))
    failure = await speaker.not_opened(name, 1, replay_positions=u64(5))
    assert (failure.code, failure.reason) == ("DATA_LOSS", "STATE_LOST")
    assert failure.metadata["position"] == "2"
    failure = await speaker.not_opened(fresh_id(), 2, replay_positions=u64(1))
    assert (failure.reason, failure.metadata["position"]) == ("STATE_LOST", "0")
    assert (await speaker.open_one(name, 3, replay_positions=u64(2))).position == 2


async def test_detached_sessions_stay(speaker: Speaker, other: Speaker, subject: Subject) -> None:
    """DETACH lets a session go; its handle stands for nothing afterwards, the session can be resumed."""
    name, inputs = fresh_id(), subject.random(5)
    await speaker.open_one(name)
    await speaker.step(0, 0, inputs)
    closed = await speaker.close(0)
    assert np.frombuffer(closed.handles, "<u4").tolist() == [0]
    await speaker.send_chunk([0], [5], [inputs])
    assert (await speaker.refusal()).reason == "SESSION_NOT_FOUND"
    assert (await other.open_one(name, mode=pb.OPEN_MODE_RESUME)).position == 5
    assert not speaker.notices, "a session that was let go does not leave its stream again"


async def test_deleted_sessions_are_gone(speaker: Speaker, other: Speaker, subject: Subject) -> None:
    """DELETE ends a session; a new one of that name starts at 0 with a higher epoch."""
    name = fresh_id()
    first = await speaker.open_one(name)
    await speaker.step(0, 0, subject.random(2))
    await speaker.close(0, delete=True)
    assert not speaker.notices, "who deletes hears of it by the answer"
    assert (await other.not_opened(name, mode=pb.OPEN_MODE_RESUME)).reason == "SESSION_NOT_FOUND"
    anew = await other.open_one(name, mode=pb.OPEN_MODE_CREATE)
    assert anew.position == 0
    assert anew.epoch > first.epoch


async def test_chunks_before_a_close_are_applied(speaker: Speaker, other: Speaker, subject: Subject) -> None:
    """Chunks sent before a close are applied first, and answered before it."""
    name, inputs = fresh_id(), subject.random(8)
    await speaker.open_one(name)
    await speaker.send_chunk([0], [0], [inputs])
    await speaker.send_chunk([0], [8], [inputs])
    await speaker.send(close=pb.CloseFrame(handles=b"\0\0\0\0"))
    assert [answer.end for answer in await speaker.answers(2)] == [8, 16]
    await speaker.expect("closed")
    assert (await other.open_one(name)).position == 16


async def test_closing_what_is_not_open_is_a_row_error(speaker: Speaker) -> None:
    """Sessions that were not open are errors in `closed`; their handles are free all the same."""
    await speaker.open_one(fresh_id())
    closed = await speaker.close(0, 7)
    assert np.frombuffer(closed.handles, "<u4").tolist() == [0]
    assert [error.handle for error in closed.errors] == [7]


async def test_a_handle_in_use_is_bound_anew(speaker: Speaker, other: Speaker, subject: Subject) -> None:
    """A handle that is opened again stands for the new session; what becomes of the old one is not told to it."""
    first, second, inputs = fresh_id(), fresh_id(), subject.random(3)
    await speaker.open_one(first, 0)
    await speaker.step(0, 0, inputs)
    await speaker.open_one(second, 0)
    await speaker.step(0, 0, inputs)
    assert (await other.open_one(first)).position == 3
    assert (await speaker.step(0, 3, inputs)).end == 6, "the handle's session is the second one still"


async def test_ephemeral_is_told_and_kept(speaker: Speaker, caller: Caller) -> None:
    """An ephemeral session is shown as one, also after a resume."""
    name = fresh_id()
    await speaker.open_one(name, ephemeral=True)
    request = session_pb2.GetSessionRequest(model=speaker.model, session_id=name)
    assert (await caller.sessions.GetSession(request)).session.ephemeral
    await speaker.open_one(name)
    assert (await caller.sessions.GetSession(request)).session.ephemeral


async def test_initial_states_replace_the_start_values(speaker: Speaker, subject: Subject) -> None:
    """Start values sent along are used for new sessions; zeros are the default here, so ones answer otherwise."""
    specs = subject.signature.states
    ones = [tensor(s.input, np.full((1, *row_shape(s)), 0.5, s.dtype)) for s in specs]
    inputs = subject.random(3)
    await speaker.open_one(fresh_id(), 0)
    await speaker.open_one(fresh_id(), 1, initial_states=ones)
    await speaker.open_one(fresh_id(), 2, initial_states=ones)
    plain, one, two = [await speaker.step(handle, 0, inputs) for handle in range(3)]
    assert not same_bits(plain.outputs, one.outputs)
    assert same_bits(one.outputs, two.outputs)


async def test_a_state_that_is_not_named_starts_as_the_model_says(speaker: Speaker, subject: Subject) -> None:
    """Of several states some may be named: the others have the values that the signature says."""
    specs, inputs = subject.signature.states, subject.random(3)
    named = [tensor(specs[0].input, np.full((1, *row_shape(specs[0])), 0.5, specs[0].dtype))]
    rest = [tensor(spec.input, start_row(spec)[None]) for spec in specs[1:]]
    await speaker.open_one(fresh_id(), 0, initial_states=named)
    await speaker.open_one(fresh_id(), 1, initial_states=[*rest, *named])
    one, two = [await speaker.step(handle, 0, inputs) for handle in range(2)]
    assert same_bits(one.outputs, two.outputs)


async def test_a_session_for_callers_of_step_has_start_values_too(caller: Caller, subject: Subject) -> None:
    """OpenSession takes start values by name, and refuses others."""
    spec, outputs = subject.signature.states[0], []
    half, inputs = np.full((1, *row_shape(spec)), 0.5, spec.dtype), subject.random(1)
    for given in ([tensor(spec.input, start_row(spec)[None])], [tensor(spec.input, half)]):
        ask: dict[str, Any] = {"model": subject.name, "session_id": fresh_id()}
        opened = await caller.sessions.OpenSession(session_pb2.OpenSessionRequest(**ask, initial_states=given))
        assert opened.created
        outputs.append((await caller.step(subject.name, ask["session_id"], inputs)).outputs)
    assert outputs[0] != outputs[1]
    wrong = session_pb2.OpenSessionRequest(**ask, initial_states=[tensor("no-state", half)])
    assert (await failing(caller.sessions.OpenSession(wrong))).reason == "BAD_TENSOR"


@pytest.mark.parametrize("times", [0, 2])
async def test_an_initial_state_that_is_none_or_comes_twice_refuses_the_frame(
    speaker: Speaker, subject: Subject, times: int
) -> None:
    """Names are those of the signature's states, each once at most; else BAD_TENSOR names the field."""
    spec = subject.signature.states[0]
    given = [tensor(spec.input if times else "no-state", start_row(spec)[None])] * max(1, times)
    await speaker.send(
        open=pb.OpenFrame(
            model=speaker.model,
            handles=b"\0\0\0\0",
            ids=[fresh_id()],
            writer=speaker.writer,
            incarnation=next_incarnation(),
            initial_states=given,
        )
    )
    failure = await speaker.refused()
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "BAD_TENSOR")
    assert failure.metadata["field"] == "initial_states"


async def test_initial_states_of_the_wrong_shape_refuse_the_frame(speaker: Speaker, subject: Subject) -> None:
    """An initial state has shape [N, ...state of one session]; another is BAD_TENSOR and opens nothing."""
    spec, name = subject.signature.states[0], fresh_id()
    wrong = [tensor(s.input, np.zeros((2, 1), s.dtype)) for s in subject.signature.states]
    await speaker.send(
        open=pb.OpenFrame(
            model=speaker.model,
            handles=b"\0\0\0\0",
            ids=[name],
            writer=speaker.writer,
            incarnation=next_incarnation(),
            initial_states=wrong,
        )
    )
    failure = await speaker.refused()
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "BAD_TENSOR"), spec
    assert (await speaker.open_one(name)).created
