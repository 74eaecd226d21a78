"""Steps that come alone: they run without a queue, and nobody can tell but by the time that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream.v1 import inference_pb2 as pb
from statestream_server.engine import engine as engines
from statestream_server.engine.alone import Alone
from statestream_server.engine.engine import Engine
from statestream_server.engine.marks import RESET
from statestream_server.engine.scheduler import Costs
from statestream_server.sessions.admission.coalescer import Coalescer
from statestream_server.sessions.lease import Lease
from statestream_server.settings import Durability
from tests.support.arrays import Arrays, u32, u64
from tests.support.calls import DEADLINE
from tests.support.counter import numbers, sums
from tests.support.serving import Local, serving
from tests.support.speaker import Answer, Speaker, fresh_id

COLUMNS: Final = ("position", "queued", "dirty", "origin", "request", "durable", "acked")
"""Not how many chunks are not acknowledged: a batch counts more than there are, where some of its chunks have any."""


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether steps that came alone ran so, in order; none of them is taken for long, however loaded the machine is."""
    found, lone = list[bool](), Coalescer._lone
    monkeypatch.setattr(engines, "INLINE_SECONDS", 60.0)

    def seen(self: Coalescer) -> bool:
        held = any(self._arrived)
        did = lone(self)
        if held:
            found.append(did)
        return did

    monkeypatch.setattr(Coalescer, "_lone", seen)
    return found


@pytest.fixture
async def local(models_dir: Path) -> AsyncIterator[Local]:
    async with serving(models_dir) as found:
        yield found


async def test_a_step_that_comes_alone_runs_without_a_queue(
    local: Local, ran: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))
        ran.clear()
        monkeypatch.setattr(Engine, "submit", None)
        for position in range(1, 40):
            assert sums(await speaker.step(0, position, numbers(1), acked=position)) == [position + 1]
    assert ran == [True] * 39
    statistics = local.server.engine.statistics
    assert (statistics.batches, statistics.rows, statistics.steps, sum(statistics.why)) == (40, 40, 40, 40)


async def test_of_models_that_take_turns_each_is_measured(
    local: Local, ran: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that has become slow would hold up the loop for ever."""
    measured, observe = list[Costs](), Costs.observe

    def seen(self: Costs, *arguments: Any) -> bool:
        measured.append(self)
        return observe(self, *arguments)

    async with Speaker(local.channel, "counter") as counter, Speaker(local.channel, "gru") as gru:
        await counter.open_one(fresh_id())
        await gru.open_one(fresh_id())
        await counter.step(0, 0, numbers(1))
        await gru.step(0, 0, {"x": np.ones((1, 2), np.float32)})
        ran.clear()
        monkeypatch.setattr(Costs, "observe", seen)
        for position in range(1, 35):
            await counter.step(0, position, numbers(1), acked=position)
            await gru.step(0, position, {"x": np.ones((1, 2), np.float32)}, acked=position)
    assert all(ran)
    assert [measured.count(local.table(name).costs) for name in ("counter", "gru")] == [2, 2]


async def test_behind_it_nothing_waits(local: Local, ran: list[bool]) -> None:
    """A reset waits when the chunk before it ran, and is no batch: what comes alone then notes that nothing waits."""
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))
        with local.engine_held():
            await speaker.send_chunk([0], [1], [numbers(1)], acked=[1])
            await speaker.send(chunk=pb.ChunkFrame(handles=u32(0), positions=u64(2), marks=bytes([RESET])))
            await local.until(lambda: local.server.engine.queued == 2)
        await speaker.rows(2)
        assert local.server.engine._backlog
        ran.clear()
        assert sums(await speaker.step(0, 3, numbers(1), acked=3)) == [1]
        assert ran == [True]
        assert not local.server.engine._backlog


@pytest.mark.parametrize("kind", ["two steps", "not acknowledged", "a gap", "again", "not finite"])
async def test_what_is_not_as_usual_is_left_to_a_batch(local: Local, ran: list[bool], kind: str) -> None:
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))
        await speaker.step(0, 1, numbers(1), acked=1)
        ran.clear()
        position, acked, inputs = 2, 2, numbers(1)
        if kind == "two steps":
            inputs = numbers(1, 1)
        elif kind == "not acknowledged":
            acked = 1
        elif kind == "a gap":
            position = 3
        elif kind == "again":
            position, acked = 1, 1
        else:
            inputs = numbers(np.nan)
        await speaker.send_chunk([0], [position], [inputs], acked=[acked])
        (row,) = await speaker.rows(1)
        assert not any(ran)
        reasons = {"a gap": "POSITION_GAP", "not finite": "NON_FINITE_STATE"}
        if kind in reasons:
            assert not isinstance(row, Answer)
            assert row.failure.reason == reasons[kind]
        else:
            assert isinstance(row, Answer)
        at = int(local.table("counter").position[local.table("counter").resident()[0]])
        assert sums(await speaker.step(0, at, numbers(1), acked=at)) == [at + 1]


@dataclass(frozen=True)
class Said:
    """A chunk: of which session, by how much it misses its place, how much is acknowledged, and its steps."""

    session: int
    off: int
    unread: int
    values: tuple[float, ...]


CHUNKS: Final = st.builds(
    Said,
    st.integers(0, 1),
    st.sampled_from([0, 0, 0, 0, 0, -1, 1]),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.lists(st.sampled_from([1.0, 2.5, np.nan]), min_size=1, max_size=2).map(tuple) | st.just((1.0,)),
)


@given(st.lists(st.lists(CHUNKS, min_size=1, max_size=2, unique_by=lambda said: said.session), max_size=14))
def test_nobody_can_tell(twins: Twins, rounds: Sequence[Sequence[Said]]) -> None:
    """Any chunks, one or two at a time, come to the same answers, columns and kept replies with and without it."""
    with_it, without = twins.both(rounds)
    assert with_it == without


@dataclass
class Twins:
    """Two servers, of which one runs nothing alone, on a loop of their own."""

    loop: asyncio.AbstractEventLoop
    locals: Sequence[Local]
    alone: list[int]

    def both(self, rounds: Sequence[Sequence[Said]]) -> list[Any]:
        return [self.loop.run_until_complete(self._walk(local, rounds)) for local in self.locals]

    async def _walk(self, local: Local, rounds: Sequence[Sequence[Said]]) -> Any:
        table, heard = local.table("counter"), list[Any]()
        async with Speaker(local.channel, "counter") as speaker:
            names = fresh_id(), fresh_id()
            await speaker.open(*names)
            rows = np.array([table.rows_of("")[name] for name in names])
            for chunks in rounds:
                at = table.position[rows].astype(int).tolist()
                starts = [max(0, at[said.session] + said.off) for said in chunks]
                acked = [max(0, at[said.session] - said.unread) for said in chunks]
                inputs: list[Arrays] = [numbers(*said.values) for said in chunks]
                for said, start, known, arrays in zip(chunks, starts, acked, inputs, strict=True):
                    await speaker.send_chunk([said.session], [start], [arrays], acked=[known])
                found = await speaker.rows(len(chunks))
                heard.append(sorted(_told(row) for row in found))
                heard.append([getattr(table, name)[rows].tolist() for name in COLUMNS])
                heard.append([[_kept(reply) for reply in table.replies.replies(row)] for row in rows.tolist()])
            await speaker.close(0, 1, delete=True)
        return heard


def _told(row: Any) -> tuple[Any, ...]:
    if isinstance(row, Answer):
        return row.handle, "", row.position, row.durable > 0, str(sums(row))
    return row.handle, row.failure.reason, row.position, row.failure.message, str(row.failure.metadata)


def _kept(reply: Any) -> tuple[Any, ...]:
    return reply.start, reply.steps, reply.digest, [array.tolist() for array in reply.outputs]


@pytest.fixture(scope="module")
def twins(models_dir: Path) -> Any:
    loop, alone, step = asyncio.new_event_loop(), [0], Alone.step

    def counted(self: Alone, *arguments: Any) -> bool:
        did = step(self, *arguments)
        alone[0] += did
        return did

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Alone, "step", counted)
        contexts = [serving(models_dir, durability=Durability.NONE) for _ in range(2)]
        local = [loop.run_until_complete(context.__aenter__()) for context in contexts]
        local[1].server.engine.lone = None
        yield Twins(loop, local, alone)
        for context in contexts:
            loop.run_until_complete(context.__aexit__(None, None, None))
        loop.close()
    assert alone[0] > 100


async def test_its_reply_waits_where_the_lease_was_not_looked_at(
    local: Local, ran: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped while the step ran finds out first whether the session is its own still."""
    held = list[Any]()
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))
        ran.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Lease, "lets_go", lambda *_: False)
            patch.setattr(Lease, "release", lambda _, table, rows, release: held.append((rows, release)))
            await speaker.send_chunk([0], [1], [numbers(1)], acked=[1])
            await local.until(lambda: held)
        assert ran == [True]
        ((rows, release),) = held
        release(np.arange(len(rows)), None)
        (answer,) = await speaker.answers(1)
        assert sums(answer) == [2]


async def test_one_whose_model_refuses_it_is_told_by_a_batch(models_dir: Path, ran: list[bool]) -> None:
    async with serving(models_dir) as local, Speaker(local.channel, "counter") as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))
        table, step, failures = local.table("counter"), local.table("counter").rows.step, list[int]()

        def failing(source: Any, target: Any, inputs: Any) -> Any:
            failures.append(len(source))
            raise RuntimeError("no such token")

        table.rows.step = failing  # type: ignore[method-assign]
        await speaker.send_chunk([0], [1], [numbers(1)], acked=[1])
        refusal = await speaker.refusal()
        assert (refusal.reason, "no such token" in refusal.message) == ("BAD_TENSOR", True)
        assert failures == [1, 1]
        table.rows.step = step  # type: ignore[method-assign]
        assert sums(await speaker.step(0, 1, numbers(1), acked=1)) == [2]
        assert not local.server.engine.broken


async def test_one_that_ends_without_memory_ends_the_server(models_dir: Path) -> None:
    """Whether its state is committed is not known: a second run could apply it twice, a refusal could be a lie."""
    async with serving(models_dir) as local, Speaker(local.channel, "counter") as speaker:
        await speaker.open_one(fresh_id())
        await speaker.step(0, 0, numbers(1))

        def failing(source: Any, target: Any, inputs: Any) -> Any:
            raise MemoryError

        local.table("counter").rows.step = failing  # type: ignore[method-assign]
        await speaker.send_chunk([0], [1], [numbers(1)], acked=[1])
        with pytest.raises(MemoryError):
            await asyncio.wait_for(local.running.failed(), DEADLINE)
        assert local.server.engine.broken
