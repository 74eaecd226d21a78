"""Judges a client of any language by what it sends to a scripted peer: `python -m tests.compliance.clients COMMAND…`.

COMMAND is run once a case, with three more arguments: ADDRESS MODEL ID. It opens the session, reads numbers from stdin,
one a line, sends each as a step (in order, as many under way as it likes), writes each output to stdout, one a line,
and closes the session when stdin ends. It ends with 0; or, where the server's answer ends the session, it prints the
reason to stderr and ends with another status.

    python -m tests.compliance.clients node examples/node/numbers.js
    python -m tests.compliance.clients python -m tests.compliance.numbers
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from statestream.contract import errors
from tests.compliance.peer import MODEL, Peer, Script, listening

STEPS: Final = 40
SECONDS: Final = 30.0


@dataclass(frozen=True)
class Case:
    """What goes wrong, and what must come of it.

    Attributes:
        script: What goes wrong.
        ends: The reason of which the client must speak; "" where it must go through.
        streams: The least number of streams.
    """

    script: Script
    ends: str = ""
    streams: int = 1


def cases() -> dict[str, Case]:
    """All of them, anew: a script is used up."""
    moved = errors.SessionMoved("a newer claim has it", metadata={"epoch": str(1 << 51), "incarnation": "1"})
    return {
        "plain": Case(Script()),
        "broken before a chunk was applied": Case(Script(chunks={5: "late"}), streams=2),
        "broken before its answer left": Case(Script(chunks={5: "lost"}), streams=2),
        "broken again and again": Case(Script(chunks={2: "lost", 3: "late", 4: "lost", 9: "late"}), streams=5),
        "killed, at the last checkpoint": Case(Script(chunks={9: "killed", 17: "killed"}, every=4), streams=3),
        "an answer that comes twice": Case(Script(chunks={3: "twice", 4: "twice"})),
        "an answer in parts": Case(Script(chunks={3: "parts"})),
        "drained": Case(Script(chunks={6: "leave"}), streams=2),
        "asked to move": Case(Script(chunks={6: "move"})),
        "refused for a while": Case(Script(chunks={4: "OVERLOADED", 8: "WINDOW_FULL", 12: "STORE_UNAVAILABLE"})),
        "not the owner any more": Case(Script(chunks={6: "NOT_OWNER"})),
        "a store away when opening": Case(Script(opens={1: errors.StoreUnavailable("the store is away")})),
        "small windows": Case(Script(window=2, bytes=1200)),
        "the answer to the close is lost": Case(Script(close_lost=True)),
        "fenced by another writer": Case(Script(chunks={5: "late"}, opens={2: moved}), ends="SESSION_MOVED"),
        "state that is lost": Case(
            Script(chunks={5: "late"}, opens={2: errors.StateLost("gone", metadata={"position": "0"})}),
            ends="STATE_LOST",
        ),
        "another version of the protocol": Case(Script(protocol=9), ends="UNSUPPORTED"),
    }


async def judge(command: Sequence[str], case: Case) -> list[str]:
    """What the client did wrong, in words; nothing where it is right."""
    numbers = np.arange(1, STEPS + 1, dtype=np.float32)
    async with listening(case.script) as (peer, address):
        process = await asyncio.create_subprocess_exec(
            *command, address, MODEL, "one", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            text = "".join(f"{number:g}\n" for number in numbers)
            out, err = await asyncio.wait_for(process.communicate(text.encode()), SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
            return [*peer.faults, f"it did not end within {SECONDS:g} s; {_where(peer)}"]
    faults, outputs = list(peer.faults), [float(line) for line in out.decode().split()]
    wanted = np.cumsum(numbers).tolist()
    if outputs != wanted[: len(outputs)]:
        faults.append(f"outputs {outputs}; expected {wanted}")
    if case.ends:
        if process.returncode == 0:
            faults.append(f"it ended with 0 and should have told {case.ends}")
        if case.ends not in err.decode():
            faults.append(f"it did not name {case.ends}: {err.decode()[-500:]}")
        return faults
    if process.returncode != 0:
        faults.append(f"it ended with {process.returncode}: {err.decode()[-500:]}")
    if len(outputs) < STEPS:
        faults.append(f"{len(outputs)} outputs of {STEPS}")
    if peer.detached_at != STEPS:
        faults.append(f"it did not close the session at {STEPS}")
    if peer.streams < case.streams:
        faults.append(f"{peer.streams} streams; expected {case.streams} or more")
    return faults


def _where(peer: Peer) -> str:
    left = f"still to come: {peer.script.chunks}"
    return f"{peer.streams} streams, position {peer.position}, acknowledged {peer.acked}, {left}"


async def main(command: Sequence[str]) -> int:
    """Runs all cases and says what came of each; returns how many failed."""
    failed = 0
    for name, case in cases().items():
        faults = await judge(command, case)
        failed += bool(faults)
        print(f"{'FAILED' if faults else 'passed'}  {name}")
        for fault in faults:
            print(f"        {fault}")
    print(f"{failed} of {len(cases())} cases failed" if failed else f"all {len(cases())} cases passed")
    return failed


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(min(1, asyncio.run(main(sys.argv[1:]))))
