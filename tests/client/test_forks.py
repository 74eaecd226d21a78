"""A process that forks with a client in it: the copy says so and ends at once, the parent's goes on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.client.fake_server import Fake

SYNC = """
import multiprocessing, os, sys, threading
import statestream

client = statestream.connect(sys.argv[1])
session, other = client.session("sum", "a"), client.session("sum", "b")
over = threading.Event()

def run():
    while not over.is_set():
        other.step([1, 1])

thread = threading.Thread(target=run)
thread.start()

def child(leave):
    for call in (lambda: session.step([1, 1]), client.info, session.snapshot, session.flush):
        try:
            call()
        except statestream.Closed as error:
            assert "forked" in str(error) and "connect again here" in str(error), error
        else:
            raise AssertionError("a copy was used")
    leave()

def nothing(): pass
def leave():
    session.close()
    client.close()

for ends in (nothing, leave, nothing, leave):
    pid = os.fork()
    if not pid:
        child(ends)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
process = multiprocessing.get_context("fork").Process(target=child, args=(leave,))
process.start()
process.join()
assert process.exitcode == 0
over.set()
thread.join()
print(session.step([1, 1]).tolist())
client.close()
"""

AIO = """
import asyncio, os, sys
import statestream
from statestream import aio, forks

async def main():
    async with aio.connect(sys.argv[1]) as client, client.session("sum", "a") as session:
        print((await session.step([1, 1])).tolist(), flush=True)
        forks._in_child()
        try:
            await session.step([1, 1])
        except statestream.Closed as error:
            assert "forked" in str(error) and "connect again here" in str(error), error
        else:
            raise AssertionError("a copy was used")
    os._exit(0)

asyncio.run(main())
"""
"""What a child is told, without a fork: gRPC's own asyncio loop does not outlive one, with or without a client."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("script", [SYNC, AIO], ids=["sync", "aio"])
def test_a_forked_copy_says_so_and_its_process_ends_at_once(fake: Fake, script: str) -> None:
    """The limit is for what hung for ever: children wait for threads that they have not."""
    command = [sys.executable, "-W", "ignore", "-c", script, fake.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[1.0, 1.0]"]), done.stderr
