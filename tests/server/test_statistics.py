"""What engine and scheduler say of their batches, and where it is shown."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import statestream
from statestream.v1 import inference_pb2 as pb
from statestream_server.edges.http.metrics import ServerCollector
from statestream_server.engine import engine as engines
from statestream_server.engine.scheduler import SIZES, WAITS, Statistics, Why
from statestream_server.engine.work import Priority
from statestream_server.models.memory.policies import SerialisedRows
from tests.support.arrays import tensor
from tests.support.calls import Caller
from tests.support.serving import Local
from tests.support.speaker import Speaker, fresh_id


def ones(steps: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.ones((steps, 1), np.float32)}


async def reasons(local: Local, chunks: list[tuple[int, int, int]], *, sessions: int) -> list[Why]:
    """Queues chunks (handle, position, steps) of new sessions while nothing runs; why its batches were not larger."""
    table, statistics = local.table("counter"), local.server.engine.statistics
    async with Speaker(local.channel, "counter") as speaker:
        for handle in range(sessions):
            await speaker.open_one(fresh_id(), handle=handle)
        before = list(statistics.why)
        with local.engine_held():
            for handle, position, steps in chunks:
                await speaker.send_chunk([handle], [position], [ones(steps)])
            await local.until(lambda: table.lane.queued == len(chunks))
        await speaker.answers(len(chunks))
    return [why for why in Why for _ in range(statistics.why[why] - before[why])]


async def test_every_reason_why_a_batch_was_not_larger(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await reasons(local, [(0, 0, 1)], sessions=1) == [Why.ALL]
    assert await reasons(local, [(0, 0, 1), (0, 1, 1)], sessions=1) == [Why.BUSY, Why.ALL]
    table = local.table("counter")
    costs = table.costs
    # What the runs before took decides nothing here: on a loaded machine one of them may have been slow.
    monkeypatch.setattr(type(costs), "rows", lambda self, steps, most: most)
    monkeypatch.setattr(engines, "MAX_BATCH", 2)
    found = await reasons(local, [(0, 0, 1), (1, 0, 1), (2, 0, 1)], sessions=3)
    assert found == [Why.MOST, Why.ALL]
    monkeypatch.undo()
    monkeypatch.setattr(type(costs), "rows", lambda self, steps, most: 2)
    found = await reasons(local, [(0, 0, 1), (1, 0, 1), (2, 0, 1)], sessions=3)
    assert found == [Why.TIME, Why.ALL]
    monkeypatch.undo()
    rows, table.rows = table.rows, SerialisedRows(table.rows, single=False)
    local.server.engine.add(table)
    assert await reasons(local, [(0, 0, 1), (1, 0, 1)], sessions=2) == [Why.SERIAL]
    table.rows = rows


async def test_slices_of_other_lengths_are_a_reason(local: Local) -> None:
    table, statistics = local.table("lstm"), local.server.engine.statistics
    async with Speaker(local.channel, "lstm") as speaker:
        for handle in range(2):
            await speaker.open_one(fresh_id(), handle=handle)
        before = list(statistics.why)
        with local.engine_held():
            for handle, steps in ((0, 1), (1, 4)):
                await speaker.send_chunk([handle], [0], [{"x": np.ones((steps, 3), np.float32)}])
            await local.until(lambda: table.lane.queued == 2)
        await speaker.answers(2)
    grown = [after - was for after, was in zip(statistics.why, before, strict=True)]
    assert (grown[Why.SLICES], grown[Why.ALL], sum(grown)) == (1, 1, 2)


async def test_predictions_of_other_shapes_are_a_reason(local: Local) -> None:
    caller, statistics = Caller(local.channel), local.server.engine.statistics
    before = list(statistics.why)
    with local.engine_held():
        calls = [
            caller.inference.Predict(
                pb.PredictRequest(model=model, inputs=[tensor("x", np.ones((rows, 4), np.float32))])
            )
            for model, rows in (("scores", 1), ("scores", 2))
        ]
        queues = local.server.engine._calls.by_graph
        await local.until(lambda: sum(len(queue) for queue in queues.values()) == 2)
    await asyncio.gather(*calls)
    assert statistics.why[Why.ALL] == before[Why.ALL] + 1
    assert sum(statistics.why) == sum(before) + 1


async def test_the_server_tells_what_its_engine_did(local: Local) -> None:
    """The figures of the call, of the metrics and of the engine are the same, and they add up."""
    await reasons(local, [(0, 0, 1), (1, 0, 1), (0, 1, 1)], sessions=2)
    async with statestream.aio.connect(local.address) as client:
        found = await client.statistics()
    own = local.server.engine.statistics
    assert found.batches == own.batches == sum(found.reasons.values()) == sum(found.sizes) == sum(found.waits)
    assert found.classes["live"] == (own.batches, local.server.engine.scheduler.had[Priority.LIVE].seconds)
    assert found.sizes[:2] == (1, 1), "a batch of one and one of two"
    assert found.queued_chunks == 0
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ServerCollector(local.server))
    metrics = {
        (sample.name, *(value for label, value in sample.labels.items() if label not in {"model", "version"})): (
            sample.value
        )
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if sample.labels.get("model", "counter") == "counter"
    }
    for reason, count in found.reasons.items():
        assert metrics["statestream_batch_reasons_total", reason] == count
    assert metrics["statestream_batch_rows_bucket", "1"] == 1
    assert metrics["statestream_batch_rows_count",] == own.batches
    assert metrics["statestream_batch_rows_sum",] == own.rows
    assert metrics["statestream_batch_wait_seconds_count",] == own.batches
    assert metrics["statestream_batch_run_seconds_count",] == own.batches
    assert metrics["statestream_class_batches_total", "live"] == own.batches


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 256), st.floats(0, 100), st.floats(0, 100)), max_size=20)
)
def test_counts_add_up(batches: list[tuple[int, int, float, float]]) -> None:
    statistics = Statistics()
    for rows, steps, seconds, waited in batches:
        statistics.count(rows, steps, seconds, Why.ALL, waited)
    assert sum(statistics.sizes) == sum(statistics.waits) == sum(statistics.why) == len(batches)
    assert statistics.rows == sum(rows for rows, *_ in batches)
    assert statistics.steps == sum(rows * steps for rows, steps, *_ in batches)
    for exponent, count in enumerate(statistics.sizes[:-1]):
        assert count == sum(2**exponent / 2 < rows <= 2**exponent for rows, *_ in batches)
    assert statistics.sizes[SIZES - 1] == sum(rows > 2 ** (SIZES - 2) for rows, *_ in batches)
    assert statistics.waits[WAITS - 1] == sum(int(waited * 1e6) >= 2 ** (WAITS - 2) for *_, waited in batches)
