"""`statestream serve --workers`: who watches whom, and who leaves when."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from tests.support import models
from tests.support.calls import connected
from tests.support.serving import Process, process
from tests.support.speaker import Speaker

ONE = {"x": np.ones((2, 1), np.float32)}
READY = r"ready: gRPC"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Process]:
    """Two workers that are ready; nothing is saved before the end: the interval is longer than the test."""
    folder = models.write(tmp_path / "models", "counter")
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    with process(folder, "--store", store, "--workers", "2", "--checkpoint-interval", "600") as server:
        server.wait_for(f"(?s){READY}.*{READY}")
        yield server


def workers(server: Process) -> list[int]:
    """The processes that serve. Python starts one more, which looks after resources and ends with its parent."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def stepped(server: Process, *, resumed: bool) -> None:
    """Makes a session's first two steps, or finds them made."""
    async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
        mode = pb.OPEN_MODE_RESUME if resumed else pb.OPEN_MODE_CREATE
        opened = await speaker.open_one("a", mode=mode)
        assert opened.position == (2 if resumed else 0)
        await speaker.step(0, opened.position, ONE)


async def test_a_signal_to_every_process_of_the_group_drains(pool: Process) -> None:
    """A terminal and a service manager do that: a worker hears of it from them and from its parent."""
    await stepped(pool, resumed=False)
    for pid in (*workers(pool), pool.pid):
        os.kill(pid, signal.SIGTERM)
    assert pool.wait() == 0
    pool.start()
    await stepped(pool, resumed=True)


async def test_workers_leave_when_their_parent_is_killed(pool: Process) -> None:
    """And save: nobody is left to tell them later."""
    await stepped(pool, resumed=False)
    pool.kill()  # Waits until nobody has its output open any more.
    assert len(re.findall("leaving: ", pool.output)) == 2
    pool.start()
    await stepped(pool, resumed=True)


async def test_a_worker_that_is_killed_is_started_again(pool: Process) -> None:
    one, other = workers(pool)
    os.kill(one, signal.SIGKILL)
    pool.wait_for(f"(?s)status -9.*{READY}")
    assert other in workers(pool)
    assert one not in workers(pool)
    assert pool.stop() == 0
