"""The order of what a stream says: what comes from a source that nothing overtakes, what goes between, what at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from statestream.v1 import inference_pb2 as pb
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.lag import TurnLoad
from statestream_server.sessions.admission.accounts import Accounts


class Reader:
    """Reads what is written, once it is let."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.begun: list[int] = []
        self.reads = asyncio.Event()
        self.since: float | None = None
        self.gone = False

    async def write(self, message: bytes) -> None:
        if self.gone:
            raise asyncio.InvalidStateError("the call is over")
        self.begun.append(pb.StreamResponse.FromString(message).frame)
        await self.reads.wait()
        self.frames.append(pb.StreamResponse.FromString(message).frame)


def numbered(*frames: int) -> Iterator[pb.StreamResponse]:
    return (pb.StreamResponse(frame=frame) for frame in frames)


async def written(*puts: tuple[str, Any]) -> list[int]:
    """The order in which messages leave that are put while nobody reads."""
    reader: Any = Reader()
    outbox = Outbox(reader, reader, Accounts(1 << 20, 1 << 20).open(), TurnLoad())
    writer = asyncio.create_task(outbox.write())
    for how, what in puts:
        getattr(outbox, how)(what)
        await asyncio.sleep(0)
    reader.reads.set()
    outbox.end()
    await writer
    found: list[int] = reader.frames
    return found


async def test_nothing_overtakes_replies_that_are_sent_again() -> None:
    """Whoever has the reply to a later chunk acknowledges the earlier ones: theirs must have left before."""
    one, five = pb.StreamResponse(frame=1), pb.StreamResponse(frame=5)
    assert await written(("put", one), ("put_in_order", numbered(2, 3, 4)), ("put", five)) == [1, 2, 3, 4, 5]


async def test_what_an_open_asked_for_holds_others_up_for_a_message_only() -> None:
    one, five = pb.StreamResponse(frame=1), pb.StreamResponse(frame=5)
    assert await written(("put", one), ("put_from", numbered(2, 3, 4)), ("put", five)) in (
        [1, 2, 5, 3, 4],
        [1, 5, 2, 3, 4],
    )


class Answers:
    """A stream whose answers are put one by one, and what of their bytes is under way."""

    def __init__(self) -> None:
        self.reader = Reader()
        either: Any = self.reader
        self.account = Accounts(1 << 20, 1 << 20).open()
        self.window = self.account.window()
        self.outbox = Outbox(either, either, self.account, TurnLoad())
        self.writer = asyncio.create_task(self.outbox.write())

    @property
    def held(self) -> int:
        return self.window.held

    def put(self, frame: int, *, alone: bool = True) -> None:
        self.account.take(100, self.window)
        self.outbox.put_bytes(pb.StreamResponse(frame=frame).SerializeToString(), self.window, 100, alone=alone)


async def test_an_answer_to_a_stream_that_says_nothing_begins_to_leave_at_once() -> None:
    answers = Answers()
    answers.put(1)
    assert not answers.reader.begun, "its writer has not begun"
    answers.reader.reads.set()
    for _ in range(4):
        await asyncio.sleep(0)
    answers.put(0)
    assert answers.reader.frames == [1, 0], "a write that waits for nothing is over"
    answers.put(5, alone=False)
    assert answers.reader.frames == [1, 0]
    for _ in range(4):
        await asyncio.sleep(0)
    answers.reader.reads.clear()
    answers.put(2)
    assert answers.reader.begun == [1, 0, 5, 2]
    assert answers.reader.since is not None, "a reader that takes nothing is found by it"
    assert answers.held == 0
    answers.put(3)
    answers.put(4)
    await asyncio.sleep(0)
    assert answers.reader.begun == [1, 0, 5, 2], "one write at a time"
    assert answers.held == 200
    answers.reader.reads.set()
    answers.outbox.end()
    await answers.writer
    assert answers.reader.frames == [1, 0, 5, 2, 3, 4]
    assert answers.reader.since is None
    assert answers.held == 0


@pytest.mark.parametrize("seen", [False, True])
async def test_a_write_that_was_begun_ends_with_its_writer(seen: bool) -> None:
    answers = Answers()
    await asyncio.sleep(0)
    answers.put(1)
    for _ in range(3 * seen):
        await asyncio.sleep(0)  # Its writer waits for it.
    answers.writer.cancel()
    await asyncio.wait([answers.writer])
    assert answers.writer.cancelled()
    answers.reader.reads.set()
    await asyncio.sleep(0)
    assert (answers.reader.begun, answers.reader.frames) == ([1], [])
    answers.put(2)  # Nobody writes any more.
    assert answers.held == 0


async def test_a_write_that_cannot_begin_is_its_writers_failure() -> None:
    answers = Answers()
    await asyncio.sleep(0)
    answers.reader.gone = True
    answers.put(1)
    with pytest.raises(asyncio.InvalidStateError):
        await answers.writer
    assert answers.held == 0
