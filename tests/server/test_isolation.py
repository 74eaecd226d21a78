"""What is wrong with one row fails that row alone: its session stays at its last good chunk, its neighbours go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import session_pb2 as sessions
from statestream_server.engine.batch import Batch
from statestream_server.engine.scheduler import Costs
from statestream_server.engine.suspects import SUSPICION
from statestream_server.engine.table import Table
from statestream_server.sessions.admin import snapshots
from statestream_server.sessions.admin.snapshots import Snapshot
from tests.server.models import graphs
from tests.support import models
from tests.support.arrays import arrays_of, same_bits, tensor, u32, u64
from tests.support.calls import Caller, everything, failing
from tests.support.counter import numbers, sums
from tests.support.serving import Local, serves_on, serving
from tests.support.speaker import Answer, Opened, Refusal, Speaker, fresh_id


def words(*values: int) -> dict[str, np.ndarray]:
    """Inputs of "tokens"."""
    return {"token": np.asarray(values, np.int64)}


@contextmanager
def runs(table: Table) -> Iterator[list[int]]:
    """The rows of each run of a table's model while this is entered."""
    sizes, step = list[int](), table.rows.step

    def count(source: Any, target: Any, inputs: Any) -> Any:
        sizes.append(len(source))
        return step(source, target, inputs)

    table.rows.step = count  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        table.rows.step = step  # type: ignore[method-assign]


class TestNonFiniteState:
    async def test_the_session_stays_at_its_last_good_chunk(self, counter: Speaker, local: Local) -> None:
        """A chunk that spoils the state at its third step leaves the session before the chunk, not inside it."""
        await counter.open_one(fresh_id())
        await counter.step(0, 0, numbers(1, 2))
        await counter.send_chunk([0], [2], [numbers(1, 1, np.nan, 1)])
        failure = await counter.refusal()
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "NON_FINITE_STATE")
        assert sums(await counter.step(0, 2, numbers(5))) == [8]
        await serves_on(local.channel)

    async def test_neighbours_in_the_same_batch_are_fine(self, counter: Speaker) -> None:
        await counter.open(*(fresh_id() for _ in range(5)))
        chunks = [numbers(1, 1), numbers(np.inf, 1), numbers(3, 3), numbers(1, np.nan), numbers(5, 5)]
        await counter.send_chunk(range(5), [0] * 5, chunks)
        rows = {row.handle: row for row in await counter.rows(5)}
        assert {handle for handle, row in rows.items() if isinstance(row, Refusal)} == {1, 3}
        fine = {handle: sums(row) for handle, row in rows.items() if isinstance(row, Answer)}
        assert fine == {0: [1, 2], 2: [3, 6], 4: [5, 10]}

    async def test_chunks_queued_behind_a_failed_one_get_a_gap(self, counter: Speaker, local: Local) -> None:
        """They start beyond where the session stays; none of them is applied, each is answered once."""
        await counter.open_one(fresh_id())
        with local.engine_held():
            for start, chunk in ((0, numbers(1, 1)), (2, numbers(np.nan)), (3, numbers(7)), (4, numbers(7, 7))):
                await counter.send_chunk([0], [start], [chunk])
            await local.until(lambda: local.server.engine.queued == 4)
        first, *others = await counter.rows(4)
        assert isinstance(first, Answer)
        assert [(row.position, row.failure.reason) for row in others if isinstance(row, Refusal)] == [
            (2, "NON_FINITE_STATE"),
            (3, "POSITION_GAP"),
            (4, "POSITION_GAP"),
        ]
        assert all(
            row.failure.metadata.get("expected_position", "2") == "2" for row in others if isinstance(row, Refusal)
        )
        assert sums(await counter.step(0, 2, numbers(10))) == [12]

    async def test_recurrent_cells_do_not_hide_it(self, local: Local) -> None:
        """NaN in the input of an LSTM or a GRU is refused like any other."""
        for model, width in (("lstm", 3), ("gru", 2)):
            async with Speaker(local.channel, model) as speaker:
                good = {"x": np.ones((4, width), np.float32)}
                bad = {"x": np.full((4, width), np.nan, np.float32)}
                await speaker.open(fresh_id(), fresh_id())
                await speaker.send_chunk([0, 1], [0, 0], [good, bad])
                rows = {row.handle: row for row in await speaker.rows(2)}
                assert isinstance(rows[0], Answer)
                assert isinstance(rows[1], Refusal)
                assert rows[1].failure.reason == "NON_FINITE_STATE"
                assert same_bits((await speaker.step(1, 0, good)).outputs, rows[0].outputs)

    async def test_a_forecast_from_a_spoilt_history_fails(self, local: Local) -> None:
        spoilt = np.ones((2, 3, 2), np.float32)
        spoilt[1, 2, 0] = np.nan
        history = pb.History(inputs=[tensor("x", spoilt)])
        request = pb.ForecastRequest(model="loop", history=history, horizon=3)
        failure = await failing(everything(Caller(local.channel).inference.Forecast(request)))
        assert failure.reason == "BAD_TENSOR"
        assert "history is nan in series 1, row 2 of its 3, place [0] of input 'x'" in failure.message
        assert local.table("loop").lane.queued == 0
        await serves_on(local.channel)


class TestModelsThatRefuseInputs:
    async def test_only_the_guilty_row_fails(self, local: Local) -> None:
        """A token beyond the table makes the whole run fail: the others are run again without it."""
        async with Speaker(local.channel, "tokens") as speaker:
            await speaker.open(*(fresh_id() for _ in range(5)))
            chunks = [words(1, 2), words(3, 4), words(0, 99), words(5, 5), words(2, 1)]
            await speaker.send_chunk(range(5), [0] * 5, chunks)
            rows = {row.handle: row for row in await speaker.rows(5)}
            guilty = rows.pop(2)
            assert isinstance(guilty, Refusal)
            assert (guilty.failure.code, guilty.failure.reason) == ("INVALID_ARGUMENT", "BAD_TENSOR")
            assert guilty.failure.fields == ["inputs"]
            whole = models.Whole(local.server.settings.models[0] / "tokens" / "1" / "model.onnx")
            for handle, row in rows.items():
                assert isinstance(row, Answer)
                np.testing.assert_array_equal(row.outputs["y"], whole.run(chunks[handle])["y"])
            again = await speaker.step(2, 0, words(1, 2))
            np.testing.assert_array_equal(again.outputs["y"], whole.run(words(1, 2))["y"])
        await serves_on(local.channel)

    async def test_the_chunk_is_the_unit_even_when_its_last_slice_fails(self, local: Local) -> None:
        """Five steps run as four and one; where the one fails, the four are undone."""
        async with Speaker(local.channel, "tokens") as speaker:
            whole = models.Whole(local.server.settings.models[0] / "tokens" / "1" / "model.onnx")
            await speaker.open_one(fresh_id())
            await speaker.step(0, 0, words(4))
            await speaker.send_chunk([0], [1], [words(1, 1, 1, 1, 77)])
            assert (await speaker.refusal()).reason == "BAD_TENSOR"
            answer = await speaker.step(0, 1, words(2, 3))
            np.testing.assert_array_equal(answer.outputs["y"], whole.run(words(4, 2, 3))["y"][1:])

    async def test_who_is_refused_again_and_again_runs_apart(
        self, local: Local, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It costs the others a search once. After some good runs it is one of them again."""
        monkeypatch.setattr(Costs, "rows", lambda self, steps, *, most: most)
        async with Speaker(local.channel, "tokens") as speaker:
            table, count = local.table("tokens"), 64
            await speaker.open(*(fresh_id() for _ in range(count)))
            position = [0] * count
            for round in range(4 + SUSPICION):
                bad = {5} if round < 3 else set()
                with runs(table) as sizes:
                    chunks = [words(99 if handle in bad else 1) for handle in range(count)]
                    await speaker.send_chunk(range(count), position, chunks, acked=position)
                    rows = {row.handle: row for row in await speaker.rows(count)}
                assert {handle for handle, row in rows.items() if isinstance(row, Refusal)} == bad
                position = [at + (handle not in bad) for handle, at in enumerate(position)]
                if round == 0:
                    assert 2 < len(sizes) <= 16
                elif round < 3 + SUSPICION:
                    assert sorted(sizes) == [1, count - 1]
                else:
                    assert sizes == [count]

    async def test_however_many_are_refused_a_turn_has_few_runs(self, local: Local) -> None:
        """The search goes on in later turns, apart from the others; each chunk is applied once or refused once."""
        async with Speaker(local.channel, "tokens") as speaker:
            table, count = local.table("tokens"), 300
            await speaker.open(*(fresh_id() for _ in range(count)))
            bad, most, batch_run = set(range(0, count, 2)), 0, Batch.run

            def run(batch: Batch) -> float:
                nonlocal most
                with runs(table) as sizes:
                    seconds = batch_run(batch)
                most = max(most, len(sizes))
                return seconds

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Batch, "run", run)
                for start in ([0] * count, [int(handle not in bad) for handle in range(count)]):
                    await speaker.send_chunk(range(count), start, [words(99 if h in bad else 1) for h in range(count)])
                    rows = await speaker.rows(count)
                    assert {row.handle for row in rows if isinstance(row, Refusal)} == bad
            assert 8 < most <= 64
            assert set(table.position[table.lane.suspects.are(np.arange(table.capacity))].tolist()) <= {0, 2}

    @pytest.mark.parametrize("batched", [True, False])
    async def test_a_refusal_steps_nobody_twice(self, tmp_path: Path, batched: bool) -> None:
        """Whatever is refused, and where in a batch or a chunk: the others count each of their steps once."""
        graphs.save(graphs.lookup(batched=batched)[0], tmp_path / "lookup" / "1")
        rng, sessions = np.random.default_rng(7), 9
        async with serving(tmp_path) as local, Speaker(local.channel, "lookup") as speaker:
            await speaker.open(*(fresh_id() for _ in range(sessions)))
            position = np.zeros(sessions, np.int64)
            for _ in range(15):
                handles = rng.permutation(sessions)[: int(rng.integers(1, sessions + 1))].tolist()
                chunks = [rng.integers(0, 5, (int(rng.integers(1, 4)), 1)) for _ in handles]
                guilty = [handle for handle in handles if rng.random() < 0.3]
                for handle, chunk in zip(handles, chunks, strict=True):
                    if handle in guilty:
                        chunk[rng.integers(0, len(chunk))] = 99
                starts = position[handles].tolist()
                await speaker.send_chunk(handles, starts, [{"token": chunk} for chunk in chunks], acked=starts)
                rows = {row.handle: row for row in await speaker.rows(len(handles))}
                for handle, chunk in zip(handles, chunks, strict=True):
                    row = rows[handle]
                    assert isinstance(row, Refusal) == (handle in guilty)
                    if isinstance(row, Answer):
                        steps = position[handle] + np.arange(len(chunk))
                        expected = 1000 * chunk.ravel() + 4 * steps + steps % 2
                        assert row.outputs["y"].ravel().tolist() == expected.tolist()
                        position[handle] += len(chunk)

    async def test_a_failing_prediction_fails_alone(self, local: Local) -> None:
        """Predictions that wait together share a batch; what the graph refuses is the caller's alone."""
        caller = Caller(local.channel)
        good = pb.PredictRequest(model="scores", inputs=[tensor("x", np.ones((2, 4), np.float32))])
        bad = pb.PredictRequest(model="scores", inputs=[tensor("x", np.ones((2, 5), np.float32))])
        results = await asyncio.gather(
            caller.inference.Predict(good), failing(caller.inference.Predict(bad)), caller.inference.Predict(good)
        )
        assert results[1].reason == "BAD_TENSOR"
        assert same_bits(arrays_of(results[0].outputs), arrays_of(results[2].outputs))


async def test_one_stream_with_tables_of_different_sizes(local: Local) -> None:
    """A stream may open sessions of several models; a row of the larger table is none of the smaller one's."""
    async with Speaker(local.channel, "gru") as speaker:
        await speaker.open_one("g", 0)
        await speaker.open(*(f"c{i}" for i in range(1500)), handles=range(1, 1501), model="counter")
        handles = [1500, 1, 1200]
        await speaker.send_chunk(handles, [0] * 3, [numbers(1)] * 3)
        assert sorted(answer.handle for answer in await speaker.answers(3)) == sorted(handles)
        await speaker.step(0, 0, {"x": np.ones((2, 2), np.float32)})
        await speaker.close(*range(1501))


async def test_a_frame_for_two_models_is_refused_as_a_whole(local: Local) -> None:
    """The inputs fit the sessions of one model only: nothing is applied, not even where they fit."""
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open_one("c", 0)
        await speaker.open_one("g", 1, model="gru")
        await speaker.send_chunk([0, 7, 1], [0, 0, 0], [numbers(1)] * 3)
        assert (await speaker.refused()).reason == "BAD_TENSOR"
        assert sums(await speaker.step(0, 0, numbers(5))) == [5]


async def test_a_frame_that_waited_is_checked_against_the_claims_of_now(local: Local) -> None:
    """It repeated a queued chunk and had to wait; a session that was taken meanwhile is not stepped by it."""
    async with Speaker(local.channel, "counter") as speaker, Speaker(local.channel, "counter") as other:
        await speaker.open("a", "b")
        with local.engine_held():
            await speaker.send_chunk([0], [0], [numbers(1)])
            await local.until(lambda: local.server.engine.queued == 1)
            await speaker.send_chunk([0, 1], [0, 0], [numbers(1), numbers(100)])
            assert (await other.open_one("b")).position == 0
        rows = await speaker.rows(3)
        assert [sums(row) for row in rows if isinstance(row, Answer)] == [[1], [1]]
        assert [row.handle for row in rows if isinstance(row, Refusal)] == [1]
        assert sums(await other.step(0, 0, numbers(5))) == [5]


async def test_the_highest_numbers_of_one_caller_hold_up_no_claim_of_others(local: Local) -> None:
    """A claim raises the epoch above every number that it names; the claims behind it must still fit into the store."""
    limit = (1 << 52) - (1 << 40)
    async with Speaker(local.channel, "counter") as speaker, Speaker(local.channel, "counter") as other:
        for number in (limit, (1 << 52) - 1):
            for field, value in (("incarnation", number), ("seen_epochs", u64(number))):
                more: dict[str, Any] = {"incarnation": 1, field: value}
                await speaker.send(
                    open=pb.OpenFrame(model="counter", handles=u32(0), ids=["mine"], writer=speaker.writer, **more)
                )
                refused = await speaker.refused()
                assert (refused.reason, refused.metadata["field"]) == ("BAD_FRAME", field)
        await speaker.open_one("mine", seen_epochs=u64(limit - 1))
        for _ in range(3):
            opened = await other.open("mine", "theirs")
            assert [type(each) for each in opened.values()] == [Opened, Opened]


async def test_a_claim_from_far_ahead_is_refused_and_its_session_stays_anybodys(local: Local) -> None:
    """Were it taken, nobody could claim the session again: every claim has to be higher than the last one."""
    now = int(time.time() * 1e6)
    async with Speaker(local.channel, "counter") as speaker, Speaker(local.channel, "counter") as other:
        for ahead in ((1 << 52) - (1 << 40) - 1, now + 2 * 3_600_000_000):
            await speaker.send(
                open=pb.OpenFrame(model="counter", handles=u32(0), ids=["a"], writer=speaker.writer, incarnation=ahead)
            )
            refused = await speaker.refused()
            assert (refused.reason, refused.metadata["field"]) == ("BAD_FRAME", "incarnation")
        await speaker.open_one("a", incarnation=now + 1_800_000_000)
        refusal = await other.not_opened("a")
        await other.open_one("a", incarnation=int(refusal.metadata["incarnation"]) + 1)


async def test_a_forged_snapshot_holds_up_no_record_of_others(models_dir: Path, tmp_path: Path) -> None:
    """A position that no store keeps is refused; the highest that is taken is written, and steps go on from it."""
    async with (
        serving(models_dir, store=f"sqlite:{tmp_path / 's.db'}", checkpoint_interval=0.05) as local,
        Speaker(local.channel, "counter") as speaker,
    ):
        caller, table = Caller(local.channel), local.table("counter")
        await speaker.open_one("neighbour")
        for position, fine in ((1 << 60, False), (1 << 53, False), ((1 << 51) - 1, True)):
            forged = Snapshot("counter", table.model.digest, position, [np.zeros(1, np.float32)])
            request = sessions.RestoreSessionRequest(
                model="counter", session_id="forged", snapshot=snapshots.dumps(forged, table.rows.columns)
            )
            if fine:
                assert (await caller.sessions.RestoreSession(request)).session.position == position
            else:
                failure = await failing(caller.sessions.RestoreSession(request))
                assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "SNAPSHOT_INVALID")
        await speaker.open_one("forged", 1)
        await speaker.step(1, (1 << 51) - 1, numbers(1))
        await speaker.step(0, 0, numbers(1))
        assert await speaker.flush(0, 1) == {0: 1, 1: 1 << 51}
        assert (await speaker.open_one("forged", 1)).position == 1 << 51
