"""A caller to be killed: `python -m tests.chaos.crasher ADDRESS ID SEED NUMBER FILE STEPS MODE`.

It steps one session and appends every output to FILE, which is all it knows when it starts again. MODE says
what it does then: "replies" asks for the replies that it had not acknowledged, and acknowledges only what
is in the file; "client" does it with the public client, which acknowledges what it hands over: replies
that its caller had no time to write down are missed, and FILE.gaps says which.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import numpy as np

import statestream
from statestream.v1 import inference_pb2 as pb
from tests.chaos.oracle import MODEL, OUTPUTS, inputs
from tests.support.arrays import u32, u64
from tests.support.calls import connected
from tests.support.speaker import Refusal, Speaker, rows_of

CHUNK, AHEAD = 4, 8


class Notebook:
    """The outputs in a file: whole steps only, in order."""

    def __init__(self, path: Path) -> None:
        self._width = OUTPUTS * 4
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        size = os.fstat(self._file).st_size
        os.ftruncate(self._file, size - size % self._width)
        self.steps = size // self._width

    def write(self, outputs: np.ndarray) -> None:
        """Appends outputs [T, OUTPUTS]."""
        os.write(self._file, np.ascontiguousarray(outputs, np.float32).tobytes())
        self.steps += len(outputs)


async def with_replies(address: str, session: str, seed: int, number: int, book: Notebook, steps: int) -> None:
    """Goes on behind the last output in the file; replies that were not noted come again."""
    async with connected(address) as channel, Speaker(channel, MODEL) as speaker:
        opening = pb.OpenFrame(model=MODEL, handles=u32(0), ids=[session], writer=os.urandom(16))
        opening.incarnation = time.time_ns() // 1000
        opening.acked_positions, opening.return_replies = u64(book.steps), True
        await speaker.send(open=opening)
        opened = await speaker.expect("opened")
        assert not opened.errors, opened.errors
        position = int(np.frombuffer(opened.positions, "<u8")[0])
        assert position >= book.steps, f"the session is at {position}, {book.steps} outputs were answered"
        while book.steps < position:
            for row in rows_of(0, await speaker.expect("result")):
                assert not isinstance(row, Refusal)
                assert row.position == book.steps, f"the reply at {row.position} came, {book.steps} was next"
                book.write(row.outputs["y"])
        sent = position
        while book.steps < steps:
            while sent < steps and sent - book.steps < CHUNK * AHEAD:
                await speaker.send_chunk([0], [sent], [{"x": inputs(seed, number, sent, CHUNK)}], [book.steps])
                sent += CHUNK
            (answer,) = await speaker.answers(1)
            assert answer.position == book.steps
            book.write(answer.outputs["y"])


async def with_client(
    address: str, session: str, seed: int, number: int, book: Notebook, gaps: Path, steps: int
) -> None:
    """Goes on by the session's id with the public client."""
    settings = statestream.Settings(retry_timeout=60)
    async with (
        statestream.aio.connect(address, settings=settings) as client,
        client.session(MODEL, id=session, return_replies=True) as s,
    ):
        kept = s.replies
        start = kept[0][0] if kept else s.position
        if start > book.steps:
            with gaps.open("a") as file:
                file.write(f"{book.steps} {start}\n")
            book.write(np.full((start - book.steps, OUTPUTS), np.nan, np.float32))
        for position, y in kept:
            if position + len(y) > book.steps:
                book.write(y[book.steps - position :])
        assert book.steps == s.position
        items = [inputs(seed, number, start, CHUNK) for start in range(s.position, steps, CHUNK)]
        async for y in s.stream(items, ahead=AHEAD):
            book.write(y)


def main() -> None:
    """Runs until STEPS outputs are in the file."""
    address, session, seed, number, file, steps, mode = sys.argv[1:]
    book = Notebook(Path(file))
    if mode == "replies":
        asyncio.run(with_replies(address, session, int(seed), int(number), book, int(steps)))
    else:
        gaps = Path(file + ".gaps")
        asyncio.run(with_client(address, session, int(seed), int(number), book, gaps, int(steps)))


if __name__ == "__main__":
    main()
