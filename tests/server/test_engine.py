"""Engine and checkpointer under way: batches on the thread, chunks cut off between slices, calls without rows."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import session_pb2 as sessions
from statestream_server import housekeeping
from statestream_server.drivers.waiting import Call
from statestream_server.engine.calls import Calls
from statestream_server.engine.courtesy import BESIDE_LIVE, MOST_GIVEN
from statestream_server.engine.engine import MAX_BATCH
from statestream_server.engine.predictions import Predictions
from statestream_server.engine.scheduler import VAIN, Head
from statestream_server.engine.work import Priority
from statestream_server.models.model import BatchPolicy
from statestream_server.quarantine.quarantine import Quarantine
from statestream_server.settings import Durability
from tests.server.models import test_sharing
from tests.support import models
from tests.support.arrays import arrays_of, tensor, u32
from tests.support.calls import Caller, everything
from tests.support.counter import numbers
from tests.support.serving import Local, serving
from tests.support.speaker import Answer, Refusal, Speaker, fresh_id, joined, next_incarnation


@contextmanager
def batches(local: Local, count: int) -> Iterator[None]:
    """While this is entered, the engine runs so many batches and then holds."""
    engine, left = local.server.engine, count
    scheduler, lone = engine.scheduler, engine.lone
    choose = scheduler.choose

    def choose_some(queues: Any) -> Any:
        nonlocal left
        left -= 1
        return choose(queues) if left >= 0 else None

    scheduler.choose, engine.lone = choose_some, None
    try:
        yield
    finally:
        scheduler.choose, engine.lone = choose, lone
        engine.wake()


async def test_a_wait_is_for_what_was_queued_when_it_began(local: Local) -> None:
    """A session that is stepped on and on holds nobody up, and the end of others' chunks rouses nobody."""
    engine, table = local.server.engine, local.table("counter")
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open("a", "b")
        rows = np.asarray([table.rows_of("")[session] for session in ("a", "b")])
        with batches(local, 0):
            await speaker.send_chunk([0], [0], [numbers(1)])
            await speaker.send_chunk([1], [0], [numbers(1)])
            await local.until(lambda: table.lane.queued == 2)
            waits = [
                asyncio.create_task(engine.settled(table, rows[:1])),
                asyncio.create_task(engine.settled(table, rows)),
            ]
            await speaker.send_chunk([0], [1], [numbers(1)])
            await speaker.send_chunk([0], [2], [numbers(1)])
            await local.until(lambda: table.lane.queued == 4)
        with batches(local, 1):
            await asyncio.gather(*waits)
            assert not table.lane.idle(rows[:1]).any()
            assert table.position[rows].tolist() == [1, 1]


async def test_what_was_sent_in_time_is_applied_before_a_session_is_taken(local: Local) -> None:
    """A claim waits for the chunks that came before it, slices and all; what comes after it started is not applied."""
    table = local.table("counter")
    async with Speaker(local.channel, "counter") as speaker, Speaker(local.channel, "counter") as other:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1, 2, 3))
        free = len(table._free)
        with batches(local, 5):
            await speaker.send_chunk([0], [3], [numbers(*[10] * 20)])
            await local.until(lambda: len(table._free) < free)
            await speaker.send_chunk([0], [23], [numbers(7)])
            await local.until(lambda: table.lane.queued == 2)
            opening = asyncio.create_task(other.open_one("a"))
            await local.until(lambda: bool(table.claiming.any()))
            await speaker.send_chunk([0], [24], [numbers(100)])
        assert (await opening).position == 24
        assert len(await speaker.answers(2)) == 2
        (late,) = await speaker.rows(1)
        assert isinstance(late, Refusal)
        assert late.failure.reason == "SESSION_NOT_FOUND"
        assert len(table._free) == free
        answer = await other.step(0, 24, numbers(4))
        assert answer.outputs["y"].ravel().tolist() == [6 + 200 + 7 + 4]


async def test_a_refused_claim_costs_the_session_nothing(local: Local) -> None:
    """A late claim with a lower incarnation finds chunks queued: they run, and are answered."""
    table = local.table("counter")
    async with Speaker(local.channel, "counter") as speaker, Speaker(local.channel, "counter") as late:
        await speaker.open_one("b", incarnation=20)
        with batches(local, 0):
            await speaker.send_chunk([0], [0], [numbers(5)])
            await local.until(lambda: table.lane.queued == 1)
            opening = asyncio.create_task(late.not_opened("b", incarnation=19))
            await local.until(lambda: bool(table.claiming.any()))
        refusal = await opening
        assert (refusal.reason, refusal.metadata["incarnation"]) == ("SESSION_MOVED", "20")
        assert len(await speaker.answers(1)) == 1
        assert (await speaker.step(0, 1, numbers(2))).outputs["y"].ravel().tolist() == [7]


async def test_a_deleted_session_leaves_nothing_behind(local: Local) -> None:
    """Deleting waits for what was sent before; the row starts anew for the next session."""
    table = local.table("counter")
    async with Speaker(local.channel, "counter") as speaker:
        for turn in range(3):
            await speaker.open_one(f"s{turn}")
            await speaker.send_chunk([0], [0], [numbers(*[1] * 50)])
            await speaker.send(close=pb.CloseFrame(handles=bytes(4), action=pb.CLOSE_ACTION_DELETE))
            (answer,) = await speaker.answers(1)
            assert answer.outputs["y"].ravel()[-1] == 50
            await speaker.expect("closed")
    assert (table.sessions, table.replies.entries, table.lane.queued) == (0, 0, 0)
    assert local.server.engine.queued_bytes == 0


async def test_batches_on_the_thread_are_like_those_on_the_loop(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch runs on the thread the loop opens, closes, saves, forks, hibernates: each session counts right."""
    monkeypatch.setattr("statestream_server.engine.engine.INLINE_SECONDS", -1.0)
    store = f"sqlite:{tmp_path / 's.db'}"
    async with serving(models_dir, store=store, durability=Durability.SYNC, limits={"max_sessions": 12}) as local:
        caller = Caller(local.channel)

        async def one(seed: int) -> None:
            turns, total, position, name = random.Random(seed), 0.0, 0, f"s{seed}"
            async with Speaker(local.channel, "counter") as speaker:
                await speaker.open_one(name, seed)
                for _ in range(12):
                    chunk = numbers(*(turns.randint(1, 9) for _ in range(turns.randint(1, 6))))
                    answer = await speaker.step(seed, position, chunk, acked=position)
                    assert answer.outputs["y"].ravel().tolist() == (total + np.cumsum(chunk["x"])).tolist()
                    total, position = total + float(chunk["x"].sum()), answer.end
                    action = turns.randint(0, 5)
                    if action == 0:
                        assert (await speaker.open_one(name, seed)).position == position
                    elif action == 1:
                        ask: dict[str, Any] = {"model": "counter", "session_id": name}
                        fork = sessions.ForkSessionRequest(**ask, fork_id=f"{name}-{position}")
                        assert (await caller.sessions.ForkSession(fork)).session.position == position
                        delete = sessions.DeleteSessionRequest(model="counter", session_id=f"{name}-{position}")
                        await caller.sessions.DeleteSession(delete)
                    elif action == 2:
                        await housekeeping.tidy(local.server, 1e12, refresh=False)
                    elif action == 3:
                        assert await speaker.flush(seed) == {seed: position}

        await asyncio.gather(*(one(seed) for seed in range(8)))
        assert local.server.engine.statistics.threaded == local.server.engine.statistics.batches


async def test_batches_of_forecasts_are_short_beside_live_steps(local: Local) -> None:
    table, engine = local.table("counter"), local.server.engine
    assert engine._most(table, Priority.FORECAST, 1) == MAX_BATCH
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1))
        fitting = table.costs.rows(1, most=MAX_BATCH)
        assert engine._most(table, Priority.FORECAST, 1) == max(1, fitting // BESIDE_LIVE)
        assert engine._most(table, Priority.LIVE, 1) == MAX_BATCH


async def test_batches_of_forecasts_give_way_to_live_steps_that_are_on_their_way(local: Local) -> None:
    """Where nothing else is queued they wait for a turn in which nothing came, but not for ever."""
    table, courtesy = local.table("counter"), local.server.engine.courtesy
    forecasting, live = (
        SimpleNamespace(heads=lambda kind=kind: [Head(kind, 1, 1)]) for kind in (Priority.FORECAST, Priority.LIVE)
    )
    alone: Any = [forecasting]
    both: Any = [forecasting, live]
    assert not courtesy.gives_way(alone), "nobody steps"
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open_one("a")
        await speaker.step(0, 0, numbers(1))
    assert table.lane.queued == 0

    def given(queues: Any, *, quiet: bool) -> bool:
        now = time.perf_counter()
        courtesy.lived, courtesy.over = now, now + 1 if quiet else now - 1  # As if the loop had been away since then.
        return courtesy.gives_way(queues)

    assert [given(alone, quiet=False) for _ in range(2 * MOST_GIVEN + 2)] == [
        *[True] * MOST_GIVEN, False
    ] * 2  # fmt: skip
    assert not given(alone, quiet=True)
    assert not given(both, quiet=False), "it is its share"


async def test_classes_share_the_engine(local: Local) -> None:
    """A long forecast does not keep a stream waiting, and is not starved by it."""
    async with Speaker(local.channel, "loop") as speaker:
        await speaker.open_one("a")
        x = {"x": np.ones((1, 2), np.float32)}
        await speaker.step(0, 0, x)
        request = pb.ForecastRequest(model="loop", session_id="a", horizon=300)
        forecast = asyncio.create_task(everything(Caller(local.channel).inference.Forecast(request)))
        steps = 1
        while not forecast.done():
            await speaker.step(0, steps, x, acked=steps)
            steps += 1
        assert len(await forecast) == 300
        assert steps > 50, "live steps run beside a forecast"


async def test_a_text_is_decoded_as_by_hand(local: Local) -> None:
    """The encoder's output starts the decoder, the best token goes in again, until the end token or the limit."""
    folder = local.server.settings.models[0] / "pair" / "1"
    encoder, decoder = models.Whole(folder / "encoder.onnx"), models.Whole(folder / "decoder.onnx")
    decoding = decoder.signature.decoding
    lengths = set()
    for text in ("a", "hgfe", "abcabc", "dddddddd"):
        source = np.asarray([[models.LETTERS.index(letter) for letter in text]])
        states = {"h": encoder.call(source=source)["memory"][0]}
        token, expected = decoding.start_token, list[tuple[int, float]]()
        while len(expected) < decoding.max_tokens:
            outputs, states = decoder.run_from({"token": np.asarray([token])}, states)
            scores = outputs["scores"][0].astype(np.float64)
            token = int(scores.argmax())
            if token == decoding.end_token:
                break
            expected.append((token, float(scores[token] - np.log(np.exp(scores).sum()))))
        call = Caller(local.channel).inference.Generate(pb.GenerateRequest(model="pair", texts=[text], stream=True))
        found = await everything(call)
        assert [one.tokens[0].token for one in found] == [token for token, _ in expected]
        np.testing.assert_allclose(
            [one.tokens[0].log_probability for one in found], [p for _, p in expected], rtol=1e-4
        )
        lengths.add(len(found))
    assert lengths


async def test_texts_are_decoded_side_by_side(local: Local) -> None:
    """Many texts at once, among live steps: each the same as alone."""
    caller = Caller(local.channel)

    async def text(value: str) -> list[int]:
        found = await everything(caller.inference.Generate(pb.GenerateRequest(model="pair", texts=[value])))
        return list(found[0].sources[0].texts[0].tokens)

    values = ["abc", "h", "gfedcba", "bb", "cafe", "dada", "face", "bead"]
    alone = [await text(value) for value in values]
    assert await asyncio.gather(*map(text, values)) == alone


async def test_predictions_of_one_shape_share_a_run(local: Local) -> None:
    """Calls that wait together run as one; other shapes run apart; each gets its own rows back."""
    caller, rng = Caller(local.channel), np.random.default_rng(0)
    inputs = [rng.standard_normal((rows, 4)).astype(np.float32) for rows in (1, 3, 0, 2, 1)]
    whole = models.Whole(local.server.settings.models[0] / "scores" / "1" / "model.onnx")
    statistics = local.server.engine.statistics
    before = statistics.batches
    with local.engine_held():
        calls = [
            caller.inference.Predict(pb.PredictRequest(model="scores", inputs=[tensor("x", array)])) for array in inputs
        ]
        queues = local.server.engine._calls.by_graph
        await local.until(lambda: sum(queue.waiting for queue in queues.values()) == len(inputs))
    for array, call in zip(inputs, calls, strict=True):
        found, expected = arrays_of((await call).outputs), whole.call(x=array)
        assert found["best"].tolist() == expected["best"].tolist()
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)
    assert statistics.batches == before + 1


@pytest.mark.parametrize("policy", BatchPolicy)
@pytest.mark.parametrize("made", [test_sharing.scaled, test_sharing.centred, test_sharing.linear])
async def test_a_call_has_the_bits_that_it_has_alone(tmp_path: Path, made: Any, policy: BatchPolicy) -> None:
    """Of graphs whose scales are measured over the run, whose rows mind each other, and whose rows do not."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    onnx.save_model(made()[0], tmp_path / "m" / "1" / "model.onnx")
    shape, rng = made()[1].inputs[0].shape[1], np.random.default_rng(0)
    inputs = [rng.standard_normal((rows, shape)).astype(np.float32) * rows for rows in (1, 4, 1, 2, 7, 1, 3, 1)]
    async with serving(tmp_path, batch_policy=policy) as local:
        caller = Caller(local.channel)

        def predict(array: np.ndarray) -> Any:
            return caller.inference.Predict(pb.PredictRequest(model="m", inputs=[tensor("x", array)]))

        alone = [arrays_of((await predict(array)).outputs)["y"] for array in inputs]
        with local.engine_held():
            calls = [predict(array) for array in inputs]
            queues = local.server.engine._calls.by_graph
            await local.until(lambda: sum(queue.waiting for queue in queues.values()) == len(inputs))
        for expected, call in zip(alone, calls, strict=True):
            found = arrays_of((await call).outputs)["y"]
            if policy == BatchPolicy.WARN and made is not test_sharing.centred:
                np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
            else:
                assert found.tobytes() == expected.tobytes()


def outputs_of(calls: Calls) -> asyncio.Future[list[np.ndarray]]:
    """What becomes of a call that somebody waits for."""
    assert isinstance(calls.sink, Call)
    return calls.sink.outputs


async def test_predictions_are_taken_oldest_first_and_alike() -> None:
    """The oldest call decides the shape; calls of another shape keep their order."""

    class Echo:
        together = 4096

        def predict(self, inputs: Any) -> Any:
            return list(inputs)

    queue = Predictions(Echo(), 1.0, bytes(16), Quarantine(None))
    widths = [2, 3, 2, 3, 2]
    calls = [Calls([np.full((1, width), float(i))], [0], [0], [1], Call()) for i, width in enumerate(widths)]
    for age, call in enumerate(calls):
        queue.push(call, age)
    outputs_of(calls[2]).cancel()
    taken = []
    while list(queue.heads()):
        batch = queue.take(100)
        batch.run()
        batch.deliver()
        taken.append([int(call.inputs[0][0, 0]) for call in batch.calls])
    assert taken == [[0, 4], [1, 3]]
    for number, call in enumerate(calls):
        if number != 2:
            assert outputs_of(call).result()[0].tolist() == [[float(number)] * widths[number]]


async def test_a_large_prediction_runs_in_pieces_and_lets_others_pass() -> None:
    """Whatever axes it has, the pieces make the whole; a call that comes meanwhile waits for one of them only."""
    widest = list[int]()

    class Double:
        together = 16

        def predict(self, inputs: Any) -> Any:
            widest.append(inputs[0].shape[1])
            return [2 * inputs[0], inputs[1].T + 1]

    queue, age = Predictions(Double(), 1.0, bytes(16), Quarantine(None)), itertools.count()
    large = [np.arange(300.0).reshape(3, 100), np.arange(200.0).reshape(100, 2)]
    small = [array[:, :1] if number == 0 else array[:1] for number, array in enumerate(large)]
    calls = [Calls(inputs, [1, 0], [1, 1], [len(inputs[1])], Call()) for inputs in (large, small)]
    queue.push(calls[0], next(age))
    finished = list[int]()
    while list(queue.heads()):
        batch = queue.take(4096)
        batch.run()
        batch.deliver()
        for call in batch.again:
            queue.push(call, next(age))
        if len(widest) == 1:
            queue.push(calls[1], next(age))
        finished += [number for number, call in enumerate(calls) if outputs_of(call).done() and number not in finished]
    assert max(widest) <= 16
    assert finished == [1, 0]
    for call, inputs in zip(calls, (large, small), strict=True):
        found = outputs_of(call).result()
        np.testing.assert_array_equal(found[0], 2 * inputs[0])
        np.testing.assert_array_equal(found[1], inputs[1].T + 1)


@given(guilty=st.sets(st.integers(0, 39), max_size=6), rows=st.lists(st.integers(1, 3), min_size=40, max_size=40))
def test_of_predictions_that_are_refused_together_the_guilty_alone_are_refused(
    guilty: set[int], rows: list[int]
) -> None:
    """They are looked for in halves, one run a turn."""

    async def run() -> None:
        turns = 0

        class Picky:
            together = 4096

            def predict(self, inputs: Any) -> Any:
                nonlocal turns
                turns += 1
                if inputs[0].max() < 0:
                    raise ValueError("a bad token")
                if inputs[0].min() < 0:
                    raise ValueError("a bad token")
                return [inputs[0] + 1]

        queue, age = Predictions(Picky(), 1.0, bytes(16), Quarantine(None)), itertools.count()
        calls = []
        for number, count in enumerate(rows):
            value = np.full((count, 1), -1 if number in guilty else number)
            calls.append(Calls([value], [0], [0], [count], Call()))
            queue.push(calls[-1], next(age))
        while list(queue.heads()):
            batch, before = queue.take(4096), turns
            batch.run()
            assert turns == before + 1
            batch.deliver()
            for call in batch.again:
                queue.push(call, next(age))
        for number, call in enumerate(calls):
            if number in guilty:
                assert isinstance(outputs_of(call).exception(), errors.BadTensor)
            else:
                assert outputs_of(call).result()[0].tolist() == [[number + 1]] * rows[number]

    asyncio.run(run())


async def test_many_sessions_grow_the_table_under_way(local: Local) -> None:
    """Rows are added while chunks run; states, replies and queues keep their places."""
    async with Speaker(local.channel, "counter") as speaker:
        first = list(range(900))
        await speaker.open(*(fresh_id() for _ in first), handles=first)
        await speaker.send_chunk(first, [0] * 900, [numbers(handle, 1, 1) for handle in first])
        more = list(range(900, 3000))
        opened = asyncio.create_task(_open_beside(local, more))
        answers = await speaker.answers(900)
        assert await opened == len(more)
        assert all(a.outputs["y"].ravel().tolist() == [a.handle, a.handle + 1, a.handle + 2] for a in answers)
        await speaker.send_chunk(first, [3] * 900, [numbers(1)] * 900)
        again = await speaker.answers(900)
        pairs: dict[int, list[Answer]] = {handle: [] for handle in first}
        for answer in [*answers, *again]:
            pairs[answer.handle].append(answer)
        assert all(joined(pair)["y"].ravel()[-1] == handle + 3 for handle, pair in pairs.items())


async def _open_beside(local: Local, handles: list[int]) -> int:
    async with Speaker(local.channel, "counter") as other:
        return len(await other.open(*(fresh_id() for _ in handles), handles=handles))


async def test_without_memory_for_rows_only_what_needs_more_is_refused(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that opens, and a chunk that needs a shadow row; neighbours in the same frame go on, and so do they."""
    monkeypatch.setattr("statestream_server.engine.table._FIRST_CAPACITY", 4)
    async with serving(models_dir) as local, Speaker(local.channel, "lstm") as speaker:
        table = local.table("lstm")
        await speaker.open("a", "b", "c")
        assert table.capacity == 4
        grow, tried = table.rows.grow, list[int]()

        def no_memory(capacity: int) -> None:
            tried.append(capacity)
            raise MemoryError("the device does not give 7 bytes for rows")

        table.rows.grow = no_memory  # type: ignore[method-assign]
        frame = pb.OpenFrame(
            model="lstm", handles=u32(3), ids=["d"], writer=speaker.writer, incarnation=next_incarnation()
        )
        await speaker.send(open=frame)
        failure = await speaker.refused()  # Rows are promised before anything is claimed: all of the frame, or nothing.
        assert failure.reason == "TOO_MANY_SESSIONS"
        assert "no memory for 1 more rows of 'lstm' beside 3: the device does not" in failure.message
        assert tried == [8, 6]
        x = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
        await speaker.send_chunk([0, 1, 2], [0, 0, 0], [{"x": x}, {"x": x[:1]}, {"x": x[:2]}])
        rows = {row.handle: row for row in await speaker.rows(3)}
        assert isinstance(rows[0], Refusal)
        assert rows[0].failure.reason == "TOO_MANY_SESSIONS"
        assert isinstance(rows[1], Answer)
        assert isinstance(rows[2], Answer)
        table.rows.grow = grow  # type: ignore[method-assign]
        whole = await speaker.step(0, 0, {"x": x})
        assert whole.position == 0
        assert np.array_equal(whole.outputs["y"][:2], rows[2].outputs["y"])
        await speaker.open_one("d", 3)


async def test_a_chunk_that_is_always_alone_waits_for_no_company(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once some have waited in vain it runs in the next turn; two that come together have the next ones wait."""
    engine, turns = local.server.engine, 0
    turn = engine._turn

    def counted() -> None:
        nonlocal turns
        turns += 1
        turn()

    monkeypatch.setattr(engine, "_turn", counted)
    x = {"x": np.ones((1, 1), np.float32)}
    async with Speaker(local.channel, "counter") as speaker:
        await speaker.open(fresh_id(), fresh_id())
        for position in range(VAIN + 1):
            await speaker.step(0, position, x)
        before = turns
        await speaker.step(0, VAIN + 1, x)
        assert turns == before + 1
        await speaker.send_chunk([0, 1], [VAIN + 2, 0], [x, x])
        await speaker.rows(2)
        before = turns
        await speaker.step(0, VAIN + 3, x)
        assert turns == before + 2
