"""Versions of the model "counter", which adds what it gets, and sessions of it.

Version 1 adds numbers as they come, version 2 ten times as much, so that a sum tells which steps were applied by which
version. Version 3 has other outputs, version 4 another state.
"""

from __future__ import annotations

from typing import Any

from statestream.v1 import inference_pb2 as pb
from statestream_server.engine.table import Table
from statestream_server.stores.base import Key, Record
from tests.support.arrays import u32
from tests.support.counter import numbers
from tests.support.serving import Local
from tests.support.speaker import Opened, Speaker, next_incarnation

MODEL = "counter"
LONG = 60.0
TO_2: dict[str, Any] = {"version": 2, "upgrade": True}


async def record(local: Local, session: str = "a") -> Record:
    (found,) = await local.server.store.load([Key("", MODEL, session)])
    assert found is not None
    return found


def table_of(local: Local, version: int) -> Table:
    table = local.server.registry.get(MODEL, version).table
    assert table is not None
    return table


async def started(speaker: Speaker, session: str = "a", *values: float) -> Opened:
    """A session of version 1 that has added some numbers."""
    opened = await speaker.open_one(session, version=1)
    await speaker.step(0, 0, numbers(*(values or (1, 2))))
    return opened


def move_frame(speaker: Speaker, session: str) -> pb.OpenFrame:
    """The frame that moves a session to version 2."""
    return pb.OpenFrame(
        model=MODEL,
        version=2,
        handles=u32(0),
        ids=[session],
        writer=speaker.writer,
        incarnation=next_incarnation(),
        upgrade=True,
    )
