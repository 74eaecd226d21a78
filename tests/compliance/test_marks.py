"""Marks and cursors: ordered, kept, saved and repeated as chunks are."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, session_pb2, session_pb2_grpc
from tests.support.arrays import pack, same_bits, tensor, u32, u64
from tests.support.calls import failing
from tests.support.speaker import Answer, Refusal, Speaker, fresh_id, next_incarnation
from tests.support.subject import Subject

RESET, CURSOR = pb.MARK_RESET, pb.MARK_CURSOR


async def mark(speaker: Speaker, position: int, kind: int = RESET, cursor: bytes = b"", handle: int = 0) -> int:
    return await speaker.send(
        chunk=pb.ChunkFrame(
            handles=u32(handle), positions=u64(position), marks=bytes([kind]), cursors=[cursor] if cursor else []
        )
    )


async def with_cursor(speaker: Speaker, position: int, inputs: dict[str, np.ndarray], cursor: bytes) -> None:
    steps = len(next(iter(inputs.values())))
    tensors = [tensor(name, array) for name, array in inputs.items()]
    frame = pb.ChunkFrame(handles=u32(0), positions=u64(position), steps=steps, inputs=tensors, cursors=[cursor])
    await speaker.send(chunk=frame)


async def described(speaker: Speaker, session: str) -> session_pb2.Session:
    stub = session_pb2_grpc.SessionServiceStub(speaker.channel)
    request = session_pb2.GetSessionRequest(model=speaker.model, session_id=session)
    return (await stub.GetSession(request)).session


async def test_a_reset_takes_a_position_and_returns_to_the_start_values(speaker: Speaker, subject: Subject) -> None:
    session, inputs = fresh_id(), subject.random(5, 1)
    await speaker.open_one(session)
    first = await speaker.step(0, 0, inputs)
    await mark(speaker, 5)
    (answer,) = await speaker.answers(1)
    assert (answer.position, answer.steps, answer.outputs) == (5, 0, {})
    again = await speaker.step(0, 6, inputs)
    assert same_bits(first.outputs, again.outputs)
    found = await described(speaker, session)
    assert (found.position, found.origin) == (11, 6)


@pytest.mark.parametrize("seed", range(6))
async def test_outputs_are_those_of_the_steps_since_the_last_reset(
    speaker: Speaker, subject: Subject, seed: int
) -> None:
    """Chunks and marks anywhere, pipelined, in frames of one and of many: as runs that begin anew at every reset."""
    rng = random.Random(seed)
    ids = [fresh_id() for _ in range(3)]
    await speaker.open(*ids)
    positions, sent = [0, 0, 0], 0
    runs: list[list[list[tuple[int, dict[str, np.ndarray]]]]] = [[[]] for _ in ids]
    for turn in range(30):
        chosen = sorted(rng.sample(range(3), rng.randrange(1, 4)))
        kinds, chunks, starts = [], [], []
        for handle in chosen:
            kind = rng.choice([0, 0, 0, RESET, CURSOR])
            steps = 0 if kind else rng.randrange(1, 9)
            starts.append(positions[handle])
            kinds.append(kind)
            if kind == RESET:
                runs[handle].append([])
            if not kind:
                chunk = subject.random(steps, 100 * turn + handle)
                chunks.append(chunk)
                runs[handle][-1].append((positions[handle], chunk))
            positions[handle] += max(1, steps)
        lengths, at = [], iter(chunks)
        for kind in kinds:
            lengths.append(0 if kind else len(next(iter(next(at).values()))))
        packed = pack(chunks) if chunks else {}
        frame = pb.ChunkFrame(
            handles=u32(*chosen),
            positions=u64(*starts),
            lengths=u32(*lengths),
            marks=bytes(kinds) if any(kinds) else b"",
            cursors=[b"c%d" % turn if kind == CURSOR else b"" for kind in kinds] if CURSOR in kinds else [],
            inputs=[tensor(name, array) for name, array in packed.items()],
        )
        await speaker.send(chunk=frame)
        sent += len(chosen)
    answers = {(answer.handle, answer.position): answer for answer in await speaker.answers(sent)}
    for handle in range(3):
        for number, run in enumerate(runs[handle]):
            fresh = 10 + 40 * handle + number
            await speaker.open_one(fresh_id(), fresh)
            end = 0
            for start, chunk in run:
                alone = await speaker.step(fresh, end, chunk)
                end = alone.end
                assert same_bits(alone.outputs, answers[handle, start].outputs)


async def test_a_mark_that_comes_again_is_answered_again_and_nothing_else_fits_there(
    speaker: Speaker, subject: Subject
) -> None:
    await speaker.open_one(fresh_id())
    inputs = subject.random(3, 1)
    await speaker.step(0, 0, inputs)
    for _ in range(2):
        await mark(speaker, 3, RESET, b"here")
        (answer,) = await speaker.answers(1)
        assert (answer.position, answer.steps) == (3, 0)
    await mark(speaker, 3, CURSOR, b"here")
    assert (await speaker.refusal()).reason == "POSITION_CONFLICT"
    await mark(speaker, 3, RESET, b"there")
    assert (await speaker.refusal()).reason == "POSITION_CONFLICT"
    await speaker.send_chunk([0], [3], [inputs])
    assert (await speaker.refusal()).reason == "POSITION_CONFLICT"
    await mark(speaker, 0)
    assert (await speaker.refusal()).reason == "POSITION_CONFLICT"
    await mark(speaker, 9)
    assert (await speaker.refusal()).reason == "POSITION_GAP"
    await speaker.step(0, 4, inputs, acked=4)
    await mark(speaker, 3, RESET, b"here")
    assert (await speaker.refusal()).reason == "ALREADY_APPLIED"


async def test_kept_marks_come_again_with_an_open_and_are_counted(speaker: Speaker, subject: Subject) -> None:
    session = fresh_id()
    await speaker.open_one(session)
    await speaker.step(0, 0, subject.random(2, 1))
    await mark(speaker, 2)
    await mark(speaker, 3, CURSOR, b"x")
    await speaker.answers(2)
    await speaker.step(0, 4, subject.random(2, 2))
    await speaker.open_one(session, 1, return_replies=True)
    answers = await speaker.answers(4)
    assert [(answer.position, answer.steps) for answer in answers] == [(0, 2), (2, 0), (3, 0), (4, 2)]


async def test_the_cursor_stays_until_the_next_one(speaker: Speaker, subject: Subject) -> None:
    """A chunk without one leaves it, a reset too; it comes with an open, a fork and a restore keep it."""
    session, fork, copy = fresh_id(), fresh_id(), fresh_id()
    await speaker.open_one(session)
    await with_cursor(speaker, 0, subject.random(2, 1), b"offset 7")
    await speaker.answers(1)
    await speaker.step(0, 2, subject.random(2, 1))
    await mark(speaker, 4)
    await speaker.answers(1)
    found = await described(speaker, session)
    assert (found.cursor, found.origin) == (b"offset 7", 5)
    stub = session_pb2_grpc.SessionServiceStub(speaker.channel)
    forked = await stub.ForkSession(
        session_pb2.ForkSessionRequest(model=speaker.model, session_id=session, fork_id=fork)
    )
    blob = (
        await stub.SnapshotSession(session_pb2.SnapshotSessionRequest(model=speaker.model, session_id=session))
    ).snapshot
    restored = await stub.RestoreSession(
        session_pb2.RestoreSessionRequest(model=speaker.model, session_id=copy, snapshot=blob)
    )
    for made in (forked.session, restored.session):
        assert (made.cursor, made.origin, made.position) == (b"offset 7", 5, 5)
    await mark(speaker, 5, CURSOR, b"offset 8")
    await speaker.answers(1)
    await speaker.send(
        open=pb.OpenFrame(
            model=speaker.model, writer=bytes(16), incarnation=next_incarnation(), handles=u32(1), ids=[session]
        )
    )
    opened = await speaker.expect("opened")
    assert [*opened.cursors] == [b"offset 8"]
    assert np.frombuffer(opened.origins, "<u8").tolist() == [5]
    await speaker.close(1, delete=True)
    await speaker.open_one(session)
    found = await described(speaker, session)
    assert (found.cursor, found.origin) == (b"", 0)


async def test_frames_with_wrong_marks_are_refused(speaker: Speaker, subject: Subject) -> None:
    await speaker.open_one(fresh_id())
    inputs = [tensor(name, array) for name, array in subject.random(1, 1).items()]
    whole: Any = {"handles": u32(0), "positions": u64(0)}
    for field, frame in (
        ("marks", pb.ChunkFrame(**whole, marks=bytes([3]))),
        ("marks", pb.ChunkFrame(**whole, marks=bytes([1, 1]))),
        ("steps", pb.ChunkFrame(**whole, marks=bytes([1]), steps=1, inputs=inputs)),
        ("lengths", pb.ChunkFrame(**whole, marks=bytes([1]), lengths=u32(1), inputs=inputs)),
        ("steps", pb.ChunkFrame(**whole, steps=0, inputs=inputs)),
        ("cursors", pb.ChunkFrame(**whole, steps=1, inputs=inputs, cursors=[b"x" * 257])),
        ("cursors", pb.ChunkFrame(**whole, steps=1, inputs=inputs, cursors=[b"x", b"y"])),
        ("cursors", pb.ChunkFrame(**whole, marks=bytes([2]))),
    ):
        await speaker.send(chunk=frame)
        refused = await speaker.refused()
        assert (refused.reason, refused.metadata["field"]) == ("BAD_FRAME", field)


async def test_a_call_has_marks_too(speaker: Speaker, subject: Subject) -> None:
    session, inputs = fresh_id(), subject.random(3, 1)
    stub = inference_pb2_grpc.InferenceServiceStub(speaker.channel)
    tensors = [tensor(name, array) for name, array in inputs.items()]
    await stub.Step(pb.StepRequest(model=speaker.model, session_id=session, inputs=tensors, cursor=b"one"))
    for _ in range(2):
        reset = pb.StepRequest(model=speaker.model, session_id=session, mark=RESET, position=3)
        response = await stub.Step(reset)
        assert (response.position, len(response.outputs)) == (4, 0)
    found = await described(speaker, session)
    assert (found.position, found.origin, found.cursor) == (4, 4, b"one")
    wrong = pb.StepRequest(model=speaker.model, session_id=session, mark=CURSOR)
    assert (await failing(stub.Step(wrong))).reason == "BAD_FRAME"


async def test_what_is_behind_a_chunk_that_is_refused_is_refused_with_it(speaker: Speaker, subject: Subject) -> None:
    """A gap, and a reset behind it: nothing of either is applied."""
    await speaker.open_one(fresh_id())
    await speaker.send_chunk([0], [1], [subject.random(1, 1)])
    await mark(speaker, 2)
    rows: list[Answer | Refusal] = await speaker.rows(2)
    assert [row.failure.reason for row in rows if isinstance(row, Refusal)] == ["POSITION_GAP"] * 2
