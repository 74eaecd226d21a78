"""A caller to be killed: `python -m tests.chaos.crasher ADDRESS ID SEED NUMBER FILE STEPS MODE`.

It steps one session and appends every output to FILE, which is all it knows when it starts again. MODE says
what it does then: "replies" asks for the replies that it had not acknowledged, and acknowledges only what
is in the file; "inputs" goes on from the position at which it finds the session, and notes in FILE.gaps
which outputs it has only missed.
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
from tests.support.speaker import Refusal, Speaker, connected, rows_of, u32, u64

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


async def with_inputs(
    address: str, session: str, seed: int, number: int, book: Notebook, gaps: Path, steps: int
) -> None:
    """Goes on from the session's position with the public client; outputs it never wrote down are missed."""
    settings = statestream.Settings(retry_timeout=60)
    async with (
        statestream.aio.connect(address, settings=settings) as client,
        client.session(MODEL, id=session) as s,
    ):
        if s.position > book.steps:
            with gaps.open("a") as file:
                file.write(f"{book.steps} {s.position}\n")
            book.write(np.full((s.position - book.steps, OUTPUTS), np.nan, np.float32))
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
        asyncio.run(with_inputs(address, session, int(seed), int(number), book, gaps, int(steps)))


if __name__ == "__main__":
    main()
