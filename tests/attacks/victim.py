"""An ordinary caller of a server under attack, in a process of its own: `python -m tests.attacks.victim ADDRESS`.

It steps one session of "counter" over raw frames, one at a time, and knows every answer. A line on standard input is
answered by a line of JSON: {"steps", "wrong", "latencies"} since the line before.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import numpy as np

from tests.support.calls import connected
from tests.support.speaker import Answer, Speaker, fresh_id

_PAUSE = 0.002
"""Seconds between two steps: a victim that is no attacker itself."""


async def main(address: str) -> None:
    """Steps until standard input ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    latencies, wrong = list[float](), list[str]()
    async with connected(address) as channel, Speaker(channel, "counter") as speaker:
        await speaker.open_one(fresh_id("victim"))
        print("ready", flush=True)
        began = [time.perf_counter()]

        async def steps() -> None:
            position = 0
            while True:
                began[0] = time.perf_counter()
                await speaker.send_chunk([0], [position], [{"x": np.ones((1, 1), np.float32)}], [position])
                (answer,) = await speaker.rows(1)
                latencies.append(time.perf_counter() - began[0])
                position += 1
                # The sum of ones is the number of steps: one lost or applied twice shows for ever.
                if not isinstance(answer, Answer) or answer.outputs["y"].item() != position:
                    wrong.append(str(answer)[:300])
                    return
                await asyncio.sleep(_PAUSE)

        stepping = asyncio.create_task(steps())
        while await lines.readline():
            if stepping.done() and (error := stepping.exception()) is not None:
                wrong.append(repr(error)[:300])
            waiting = time.perf_counter() - began[0]
            said = {"steps": len(latencies), "wrong": wrong, "latencies": [*latencies, waiting]}
            print(json.dumps(said), flush=True)
            latencies, wrong = [], []
        stepping.cancel()
        await asyncio.gather(stepping, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
