"""Chunks: positions, acknowledgements, duplicates, conflicts, gaps, packing."""

from __future__ import annotations

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import server_pb2, server_pb2_grpc
from tests.support.arrays import cut, pack, same_bits, tensor, u64
from tests.support.speaker import Answer, Refusal, Speaker, fresh_id, joined
from tests.support.subject import Subject


async def _limits(speaker: Speaker) -> server_pb2.Limits:
    stub = server_pb2_grpc.ServerServiceStub(speaker.channel)
    return (await stub.GetServerInfo(server_pb2.GetServerInfoRequest())).limits


async def test_positions_advance_by_the_steps_of_each_chunk(speaker: Speaker, subject: Subject) -> None:
    """A chunk names the position it starts at; its answer repeats it; what is durable never exceeds the end."""
    await speaker.open_one(fresh_id())
    position = 0
    for steps in (1, 5, 2, 64):
        answer = await speaker.step(0, position, subject.random(steps, position))
        position += steps
        assert answer.end == position
        assert answer.durable <= position


async def test_a_duplicate_is_answered_by_the_same_bytes(speaker: Speaker, subject: Subject) -> None:
    """A chunk sent again before its reply is acknowledged gets the first reply, and is not applied twice."""
    await speaker.open_one(fresh_id())
    inputs, later = subject.random(4, 1), subject.random(2, 2)
    first = await speaker.step(0, 0, inputs)
    second = await speaker.step(0, 4, later)
    again = await speaker.step(0, 0, inputs)
    assert same_bits(first.outputs, again.outputs)
    assert same_bits(second.outputs, (await speaker.step(0, 4, later)).outputs)
    assert (await speaker.step(0, 6, inputs)).end == 10


async def test_a_duplicate_that_overtakes_its_first_is_answered_once_each(speaker: Speaker, subject: Subject) -> None:
    """A chunk repeated while the first is still queued is one step forward and two equal replies."""
    await speaker.open_one(fresh_id())
    inputs = subject.random(200)
    for _ in range(2):
        await speaker.send_chunk([0], [0], [inputs])
    first, second = await speaker.answers(2)
    assert same_bits(first.outputs, second.outputs)
    assert (await speaker.step(0, 200, subject.random(1))).end == 201


async def test_an_acknowledged_chunk_is_already_applied(speaker: Speaker, subject: Subject) -> None:
    """Below the acknowledged position the reply is gone: ALREADY_APPLIED, as an error of that row."""
    await speaker.open_one(fresh_id())
    inputs = subject.random(3)
    await speaker.step(0, 0, inputs)
    await speaker.step(0, 3, inputs, acked=3)
    await speaker.send_chunk([0], [0], [inputs])
    failure = await speaker.refusal()
    assert (failure.code, failure.reason) == ("ALREADY_EXISTS", "ALREADY_APPLIED")
    assert same_bits((await speaker.step(0, 3, inputs)).outputs, (await speaker.step(0, 3, inputs)).outputs), (
        "the reply above the acknowledged position is kept"
    )


async def test_an_ack_frame_acknowledges_without_a_chunk(speaker: Speaker, subject: Subject) -> None:
    """An ack frame has no answer; replies below it are gone."""
    await speaker.open_one(fresh_id())
    inputs = subject.random(3)
    await speaker.step(0, 0, inputs)
    await speaker.send_ack(0, 3)
    await speaker.send_chunk([0], [0], [inputs])
    assert (await speaker.refusal()).reason == "ALREADY_APPLIED"


async def test_other_bytes_at_an_applied_position_conflict(speaker: Speaker, subject: Subject) -> None:
    """Same position, other bytes: two callers write, or one changed its inputs. Nothing moves."""
    await speaker.open_one(fresh_id())
    inputs = subject.random(3, 1)
    first = await speaker.step(0, 0, inputs)
    for other in (subject.random(3, 9), subject.random(2, 1), cut(inputs, 0, 2)):
        await speaker.send_chunk([0], [0], [other])
        failure = await speaker.refusal()
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "POSITION_CONFLICT")
    assert same_bits(first.outputs, (await speaker.step(0, 0, inputs)).outputs)


async def test_a_start_inside_an_applied_chunk_conflicts(speaker: Speaker, subject: Subject) -> None:
    """The chunk as sent is the unit: one that starts in the middle of another was never applied."""
    await speaker.open_one(fresh_id())
    inputs = subject.random(6)
    await speaker.step(0, 0, inputs)
    await speaker.send_chunk([0], [2], [cut(inputs, 2, 6)])
    assert (await speaker.refusal()).reason == "POSITION_CONFLICT"


@pytest.mark.parametrize("start", [1, 7, 2**63, 2**64 - 1])
async def test_a_chunk_beyond_the_position_is_a_gap(speaker: Speaker, subject: Subject, start: int) -> None:
    """Beyond the position: POSITION_GAP, which names the position expected."""
    await speaker.open_one(fresh_id())
    await speaker.send_chunk([0], [start], [subject.random(2)])
    (row,) = await speaker.rows(1)
    assert isinstance(row, Refusal)
    assert (row.position, row.failure.code, row.failure.reason) == (start, "OUT_OF_RANGE", "POSITION_GAP")
    assert row.failure.metadata["expected_position"] == "0"
    assert (await speaker.step(0, 0, subject.random(1))).end == 1


async def test_an_acknowledgement_beyond_the_position_loses_nothing(speaker: Speaker, subject: Subject) -> None:
    """A caller cannot acknowledge what it was never sent: later replies are kept all the same."""
    await speaker.open_one(fresh_id())
    inputs = subject.random(2)
    await speaker.step(0, 0, inputs)
    await speaker.send_ack(0, 2**62)
    once = await speaker.step(0, 2, inputs)
    assert same_bits(once.outputs, (await speaker.step(0, 2, inputs)).outputs)


async def test_a_full_window_holds_the_caller_back(speaker: Speaker, subject: Subject) -> None:
    """Unacknowledged replies are never pruned: one chunk too many is WINDOW_FULL, until one is acknowledged."""
    most = (await _limits(speaker)).max_unacknowledged_chunks
    await speaker.open_one(fresh_id())
    one = subject.random(1)
    for position in range(most):
        await speaker.send_chunk([0], [position], [one])
    first = (await speaker.answers(most))[0]
    await speaker.send_chunk([0], [most], [one])
    failure = await speaker.refusal()
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "WINDOW_FULL")
    assert failure.retry_after is not None
    assert failure.retry_after > 0
    assert same_bits(first.outputs, (await speaker.step(0, 0, one)).outputs)
    await speaker.send_ack(0, 1)
    assert (await speaker.step(0, most, one)).end == most + 1


async def test_pipelined_chunks_are_applied_in_order(speaker: Speaker, subject: Subject) -> None:
    """Chunks sent without waiting give the outputs of the same chunks sent one by one."""
    whole = subject.random(60)
    await speaker.open(fresh_id(), fresh_id())
    answers = [await speaker.step(0, start, cut(whole, start, start + 6)) for start in range(0, 60, 6)]
    for start in range(0, 60, 6):
        await speaker.send_chunk([1], [start], [cut(whole, start, start + 6)])
    assert same_bits(joined(answers), joined(await speaker.answers(10)))


async def test_ragged_frames_are_cut_by_their_lengths(speaker: Speaker, subject: Subject) -> None:
    """Chunks of different lengths share a frame: each session gets the outputs of its own steps."""
    lengths = [3, 1, 7, 2, 5]
    chunks = [subject.random(steps, seed) for seed, steps in enumerate(lengths)]
    handles = [8, 2, 30, 4, 5]
    await speaker.open(*(fresh_id() for _ in lengths), handles=handles)
    frame = await speaker.send_chunk(handles, [0] * 5, chunks)
    rows = {answer.handle: answer for answer in await speaker.answers(5)}
    await speaker.open(*(fresh_id() for _ in lengths), handles=range(40, 45))
    for place, (handle, steps) in enumerate(zip(handles, lengths, strict=True)):
        assert (rows[handle].frame, rows[handle].steps) == (frame, steps)
        alone = await speaker.step(40 + place, 0, chunks[place])
        assert same_bits(rows[handle].outputs, alone.outputs)


async def test_uniform_frames_say_their_length_once(speaker: Speaker, subject: Subject) -> None:
    """`steps` and equal `lengths` are two ways to say the same."""
    await speaker.open(*(fresh_id() for _ in range(4)))
    chunks = [subject.random(3, seed) for seed in (1, 2, 1, 2)]
    await speaker.send_chunk([0, 1], [0, 0], chunks[:2])
    uniform = {answer.handle: answer for answer in await speaker.answers(2)}
    message = pb.ChunkFrame(handles=np.asarray([2, 3], "<u4").tobytes(), positions=u64(0, 0))
    message.lengths = np.asarray([3, 3], "<u4").tobytes()
    message.inputs.extend(tensor(name, array) for name, array in pack(chunks[2:]).items())
    await speaker.send(chunk=message)
    lengths = {answer.handle: answer for answer in await speaker.answers(2)}
    assert same_bits(uniform[0].outputs, lengths[2].outputs)
    assert same_bits(uniform[1].outputs, lengths[3].outputs)


async def test_a_row_error_leaves_the_others_alone(speaker: Speaker, subject: Subject) -> None:
    """A gap, a conflict and an unknown handle in one frame: the fourth session is stepped."""
    await speaker.open(*(fresh_id() for _ in range(3)))
    inputs, changed = subject.random(2, 1), subject.random(2, 2)
    await speaker.step(1, 0, inputs)
    await speaker.send_chunk([0, 1, 2, 99], [5, 0, 0, 0], [inputs, changed, inputs, inputs])
    rows = {row.handle: row for row in await speaker.rows(4)}
    reasons = {handle: row.failure.reason for handle, row in rows.items() if isinstance(row, Refusal)}
    assert reasons == {0: "POSITION_GAP", 1: "POSITION_CONFLICT", 99: "SESSION_NOT_FOUND"}
    fine = rows[2]
    assert isinstance(fine, Answer)
    assert fine.end == 2


async def test_return_replies_sends_the_kept_ones_again(speaker: Speaker, other: Speaker, subject: Subject) -> None:
    """A caller that crashed gets the replies above what it acknowledged, in order, after the opened frame."""
    name = fresh_id()
    chunks = [subject.random(steps, steps) for steps in (2, 3, 1)]
    await speaker.open_one(name)
    first = [await speaker.step(0, start, chunk) for start, chunk in zip((0, 2, 5), chunks, strict=True)]
    opened = await other.open_one(name, 4, acked_positions=u64(2), return_replies=True)
    assert opened.position == 6
    again = await other.answers(2)
    assert [(answer.handle, answer.position, answer.steps) for answer in again] == [(4, 2, 3), (4, 5, 1)]
    assert all(same_bits(a.outputs, b.outputs) for a, b in zip(first[1:], again, strict=True))


async def test_duplicates_survive_a_change_of_stream(speaker: Speaker, other: Speaker, subject: Subject) -> None:
    """The reply window belongs to the session: a resumed session answers a repeated chunk as before."""
    name, inputs = fresh_id(), subject.random(5)
    await speaker.open_one(name)
    first = await speaker.step(0, 0, inputs)
    await other.open_one(name)
    assert same_bits(first.outputs, (await other.step(0, 0, inputs)).outputs)


async def test_flush_makes_everything_durable(speaker: Speaker, subject: Subject) -> None:
    """A flush answers once everything sent before it is applied and saved (where the server saves at all)."""
    opened = await speaker.open(fresh_id(), fresh_id())
    await speaker.send_chunk([0, 1], [0, 0], [subject.random(9), subject.random(4)])
    await speaker.send(flush=pb.FlushFrame(handles=np.asarray([0, 1], "<u4").tobytes()))
    await speaker.answers(2)
    durable = await speaker.expect("durable")
    if opened[0].durability != pb.DURABILITY_MODE_NONE:  # type: ignore[union-attr]
        assert np.frombuffer(durable.durable_positions, "<u8").tolist() == [9, 4]


async def test_durable_positions_are_pushed(speaker: Speaker, subject: Subject) -> None:
    """An idle session learns that its steps became durable, unasked."""
    opened = await speaker.open_one(fresh_id())
    if opened.durability != pb.DURABILITY_MODE_INTERVAL:
        pytest.skip("only in interval mode do steps become durable after their reply")
    await speaker.step(0, 0, subject.random(3))
    await speaker.unasked(lambda: speaker.pushed.get(0) == 3)


async def test_half_close_answers_what_is_left(speaker: Speaker, subject: Subject) -> None:
    """When the client half-closes, the server answers what it has and ends the stream."""
    await speaker.open_one(fresh_id())
    inputs = subject.random(100)
    for start in range(0, 1000, 100):
        await speaker.send_chunk([0], [start], [inputs])
    await speaker.half_close()
    assert len(await speaker.answers(10)) == 10
    assert await speaker.read() is None
