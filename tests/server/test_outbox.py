"""The order of what a stream says: what comes from a source that nothing overtakes, and what goes between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from statestream.v1 import inference_pb2 as pb
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.lag import TurnLoad
from statestream_server.sessions.admission.accounts import Accounts


class Reader:
    """Reads what is written, once it is let."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.reads = asyncio.Event()
        self.since: float | None = None

    async def write(self, message: bytes) -> None:
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
