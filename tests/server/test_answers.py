"""Answers: large ones in parts, too large ones refused, kept ones counted and bounded, unread ones given up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream import errors
from statestream.contract import partial
from statestream.contract.partial import PART
from statestream.signature import TensorSpec
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc
from statestream_server.edges.grpc import answers
from statestream_server.edges.grpc.answers import WHOLE, Results
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.edges.grpc.stream import Stream
from statestream_server.engine.lengths import Lengths
from statestream_server.settings import Durability
from tests.support import models
from tests.support.arrays import arrays_of, tensor, u32, u64
from tests.support.calls import Caller, everything, failing, failure_of
from tests.support.serving import Local, serving
from tests.support.speaker import Answer, Refusal, Speaker, fresh_id, next_incarnation, rows_of

WIDTH = 200_000
"""Numbers in the answer to one step of "wide": 800 KB."""
RAMP = np.arange(WIDTH, dtype=np.float32)


def ones(steps: int) -> dict[str, np.ndarray]:
    return {"x": np.ones((steps, 1), np.float32)}


async def read_on(call: Any) -> None:
    """Reads to the end."""
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.fixture(scope="session")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models.write_wide(tmp_path_factory.mktemp("wide"), WIDTH)
    return models.write(folder, "counter", "loop", "scores", "pair")


@pytest.fixture
async def wide(wide_dir: Path) -> AsyncIterator[Local]:
    async with serving(wide_dir) as local:
        yield local


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=2), min_size=1, max_size=3),
    whole=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_answers_of_any_sizes_are_cut_and_put_together(
    lengths: list[int], shapes: list[list[int]], whole: int, seed: int
) -> None:
    """Each chunk comes whole, in one frame or in parts, and no message has more than it may."""
    count, random = len(lengths), np.random.default_rng(seed)
    dtypes = ["float32", "int64", "uint8"]
    specs = [TensorSpec(name=f"y{n}", dtype=dtypes[n]) for n in range(len(shapes))]
    outputs = [random.integers(0, 99, (sum(lengths), *shape)).astype(dtypes[n]) for n, shape in enumerate(shapes)]
    results = Results(
        5,
        specs,
        np.arange(count, dtype=np.uint32),
        np.arange(count, dtype=np.uint64) * 10,
        np.arange(count, dtype=np.uint64),
        Lengths.of(np.asarray(lengths)),
        outputs,
    )
    part = max(1, whole // 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "WHOLE", whole)
        patch.setattr(answers, "PART", part)
        patch.setattr(partial, "PART", part)
        messages = [make() for make, _ in answers.cut(results)]
    speaker, rows = Speaker(None, "m"), list[Any]()  # type: ignore[arg-type]
    speaker._parts = {}
    for message in messages:
        assert message.frame == 5
        if message.HasField("part"):
            assert len(message.part.data) <= part
            rows += speaker._whole(5, message.part)
        else:
            found = rows_of(5, message.result)
            assert len(found) == 1 or sum(len(t.data) for t in message.result.outputs) <= part
            rows += found
    assert not speaker._parts
    assert [(row.handle, row.position, row.steps) for row in rows] == [(n, n * 10, s) for n, s in enumerate(lengths)]
    for n, output in enumerate(outputs):
        joined = np.concatenate([row.outputs[f"y{n}"] for row in rows])
        assert joined.dtype == output.dtype
        assert joined.tobytes() == output.tobytes()


class TestLarge:
    @pytest.mark.parametrize("steps", [2, 3, 11])
    async def test_an_answer_above_a_message_comes_in_parts(self, wide: Local, steps: int) -> None:
        async with Speaker(wide.channel, "wide") as speaker:
            await speaker.open_one("a")
            await speaker.send_chunk([0], [0], [ones(steps)])
            response = await speaker.read()
            assert response is not None
            size = steps * WIDTH * 4
            assert response.HasField("part") == (size > WHOLE)
            if response.HasField("part"):
                assert (response.part.parts, response.part.size) == (-(-size // PART), size)
                assert response.ByteSize() < PART + 1000
            speaker._inbox._queue.appendleft(response)  # type: ignore[attr-defined]  # read again, as an answer
            speaker._inbox._unfinished_tasks += 1  # type: ignore[attr-defined]
            (answer,) = await speaker.answers(1)
            assert (answer.outputs["y"] == RAMP + np.arange(1, steps + 1, dtype=np.float32)[:, None]).all()

    async def test_a_frame_of_many_large_answers_is_cut_and_its_errors_come_too(self, wide: Local) -> None:
        async with Speaker(wide.channel, "wide") as speaker:
            await speaker.open("a", "b", "c")
            await speaker.send_chunk([0, 1, 2, 9], [0, 7, 0, 0], [ones(3), ones(1), ones(2), ones(1)])
            rows = {row.handle: row for row in await speaker.rows(4)}
            assert isinstance(rows[1], Refusal)
            assert isinstance(rows[9], Refusal)
            for handle, steps in ((0, 3), (2, 2)):
                row = rows[handle]
                assert isinstance(row, Answer)
                assert (row.outputs["y"][:, 5] == np.arange(6, steps + 6)).all()

    async def test_a_repeated_chunk_is_answered_in_parts_again(self, wide: Local) -> None:
        async with Speaker(wide.channel, "wide") as speaker:
            await speaker.open_one("a")
            first = await speaker.step(0, 0, ones(4))
            again = await speaker.step(0, 0, ones(4))
            assert (first.outputs["y"] == again.outputs["y"]).all()

    @pytest.mark.parametrize("durability", [Durability.INTERVAL, Durability.SYNC])
    async def test_it_is_in_every_mode(self, wide_dir: Path, tmp_path: Path, durability: Durability) -> None:
        """Where a reply waits for its record, so does the reply that is kept."""
        store = f"sqlite:{tmp_path / 's.db'}"
        async with (
            serving(wide_dir, store=store, durability=durability) as local,
            Speaker(local.channel, "wide") as speaker,
        ):
            await speaker.open_one("a")
            for _ in range(2):
                assert (await speaker.step(0, 0, ones(3))).outputs["y"][:, 0].tolist() == [1, 2, 3]

    async def test_unary_calls_have_large_answers_too(self, wide: Local) -> None:
        caller = Caller(wide.channel)
        response = await caller.step("wide", "a", ones(24))
        assert (arrays_of(response.outputs)["y"][:, 0] == np.arange(1, 25)).all()
        request = pb.PredictRequest(model="spread", inputs=[tensor("x", np.ones((24, 1), np.float32))])
        assert arrays_of((await caller.inference.Predict(request)).outputs)["y"].shape == (24, WIDTH)


LIMITS: Final = {"max_answer_bytes": 4 * WIDTH * 4, "max_kept_bytes": 6 * WIDTH * 4}


class TestTooLarge:
    async def test_a_chunk_is_refused_before_it_runs(self, wide_dir: Path) -> None:
        """The session stays where it is, its neighbours in the frame are applied, and it goes on in smaller chunks."""
        async with serving(wide_dir, limits=LIMITS) as local, Speaker(local.channel, "wide") as speaker:
            await speaker.open("a", "b")
            await speaker.send_chunk([0, 1], [0, 0], [ones(5), ones(1)])
            refused, applied = sorted(await speaker.rows(2), key=lambda row: row.handle)
            assert isinstance(refused, Refusal)
            assert (refused.failure.code, refused.failure.reason) == ("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE")
            assert refused.failure.metadata == {"size": str(5 * WIDTH * 4), "limit": str(4 * WIDTH * 4)}
            assert refused.failure.retry_after is None
            assert isinstance(applied, Answer)
            await speaker.step(0, 0, ones(4))
            table = local.table("wide")
            assert table.position[[table.rows_of("")["a"], table.rows_of("")["b"]]].tolist() == [4, 1]

    async def test_unary_calls_and_forecasts_too(self, wide_dir: Path) -> None:
        async with serving(wide_dir, limits=LIMITS | {"max_forecast_series": 1 << 20}) as local:
            caller = Caller(local.channel)
            step = pb.StepRequest(model="wide", session_id="a", inputs=[tensor("x", ones(5)["x"])])
            assert (await failing(caller.inference.Step(step))).reason == "ANSWER_TOO_LARGE"
            predict = pb.PredictRequest(model="spread", inputs=[tensor("x", np.ones((5, 1), np.float32))])
            assert (await failing(caller.inference.Predict(predict))).reason == "ANSWER_TOO_LARGE"
            predict.outputs.append("free")
            await caller.inference.Predict(predict)
            free = pb.PredictRequest(model="spread", outputs=["free"])
            free.inputs.append(tensor("x", np.ones((1, 60_000), np.float32)))
            failure = await failing(caller.inference.Predict(free))
            assert (failure.reason, failure.metadata["size"]) == ("ANSWER_TOO_LARGE", str(60_000 * 64 * 4))
            assert local.server.engine.statistics.failed == 0

    async def test_forecasts_of_too_many_series_are_refused(self, wide_dir: Path) -> None:
        limits = {"max_answer_bytes": 1 << 16}
        async with serving(wide_dir, limits=limits) as local:
            history = pb.History(inputs=[tensor("x", np.ones((10_000, 1, 2), np.float32))])
            request = pb.ForecastRequest(model="loop", horizon=2, history=history)
            failure = await failing(everything(Caller(local.channel).inference.Forecast(request)))
            assert failure.reason == "ANSWER_TOO_LARGE"
            assert not local.table("loop").allocated

    async def test_a_frame_comes_to_what_a_stream_may_have_under_way(self, wide_dir: Path) -> None:
        """A small frame whose answers would fill the memory is applied in part, and the rest refused."""
        limits = {"max_window_bytes": 9 * WIDTH * 4}
        async with serving(wide_dir, limits=limits) as local, Speaker(local.channel, "wide") as speaker:
            names = [fresh_id() for _ in range(30)]
            await speaker.open(*names)
            await speaker.send_chunk(range(30), [0] * 30, [ones(4)] * 30)
            rows = await speaker.rows(30)
            refused = [row for row in rows if isinstance(row, Refusal)]
            assert {row.failure.reason for row in refused} == {"OVERLOADED"}
            assert len(rows) - len(refused) == 2


class TestKept:
    async def test_kept_replies_have_a_window_in_bytes(self, wide_dir: Path) -> None:
        limits = {"max_kept_bytes": 5 * WIDTH * 4}
        async with serving(wide_dir, limits=limits) as local, Speaker(local.channel, "wide") as speaker:
            await speaker.open("a", "b")
            await speaker.step(0, 0, ones(3))
            await speaker.send_chunk([0], [3], [ones(3)])
            refusal = await speaker.refusal()
            assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "WINDOW_FULL")
            assert refusal.retry_after
            await speaker.step(1, 0, ones(3))
            await speaker.step(0, 3, ones(2))
            await speaker.step(0, 5, ones(3), acked=5)
            table = local.table("wide")
            assert table.replies.steps(np.asarray([table.rows_of("")["a"]])).tolist() == [3]

    async def test_they_are_counted_when_a_session_is_opened(self, wide: Local) -> None:
        """As many as the opened frame says, in parts where they are large, oldest first; of a new session none."""
        async with Speaker(wide.channel, "wide") as first:
            await first.open("a", "b")
            for position in (0, 3, 6):
                await first.step(0, position, ones(3))
            await first.step(1, 0, ones(1))
        async with Speaker(wide.channel, "wide") as second:
            await second.send(
                open=pb.OpenFrame(
                    model="wide",
                    handles=u32(0, 1, 2),
                    ids=["a", "b", "c"],
                    writer=second.writer,
                    incarnation=next_incarnation(),
                    return_replies=True,
                )
            )
            opened = await second.expect("opened")
            assert opened.kept == u32(3, 1, 0)
            answers_ = await second.answers(4)
            assert sorted((row.handle, row.position) for row in answers_) == [(0, 0), (0, 3), (0, 6), (1, 0)]
            assert [row.position for row in answers_ if row.handle == 0] == [0, 3, 6]
            assert all((row.outputs["y"][:, 0] == np.arange(1, row.steps + 1) + row.position).all() for row in answers_)

    async def test_one_that_is_acknowledged_before_its_turn_is_told(self, wide: Local) -> None:
        """The count holds: what is not there any more when the reader comes to it comes as an error."""
        async with Speaker(wide.channel, "wide") as first:
            await first.open_one("a")
            for position in range(0, 60, 10):
                await first.step(0, position, ones(10))
        await wide.until(lambda: not len(wide.server.streams))
        call = inference_pb2_grpc.InferenceServiceStub(wide.channel).Stream()
        frame = pb.OpenFrame(
            model="wide",
            handles=u32(0),
            ids=["a"],
            writer=bytes(16),
            incarnation=next_incarnation(),
            return_replies=True,
        )
        await call.write(pb.StreamRequest(frame=1, open=frame))
        opened: Any = await call.read()
        assert opened.opened.kept == u32(6)
        ack = pb.AckFrame(handles=u32(0), acked_positions=u64(60))
        await call.write(pb.StreamRequest(frame=2, ack=ack))
        table = wide.table("wide")
        await wide.until(lambda: table.acked[table.rows_of("")["a"]] == 60)
        came, gone, whole = list[int](), list[int](), 0
        while len(came) + len(gone) < 6:
            response: Any = await call.read()
            if response.HasField("part"):
                whole += response.part.part + 1 == response.part.parts
                if response.part.part + 1 == response.part.parts:
                    came.append(response.part.position)
            else:
                gone += [row.position for row in response.result.errors]
                assert {failure_of(row.status).reason for row in response.result.errors} == {"ALREADY_APPLIED"}
        assert sorted(came + gone) == list(range(0, 60, 10))
        assert gone
        call.cancel()

    async def test_they_wait_in_the_window_and_not_as_messages(self, wide: Local) -> None:
        async with Speaker(wide.channel, "wide") as first:
            await first.open_one("a")
            for position in range(0, 70, 10):
                await first.step(0, position, ones(10))
        await wide.until(lambda: not len(wide.server.streams))
        call = inference_pb2_grpc.InferenceServiceStub(wide.channel).Stream()
        frame = pb.OpenFrame(
            model="wide",
            handles=u32(0),
            ids=["a"],
            writer=bytes(16),
            incarnation=next_incarnation(),
            return_replies=True,
        )
        await call.write(pb.StreamRequest(frame=1, open=frame))
        await wide.until(lambda: len(wide.server.streams) == 1)
        (peer,) = wide.server.streams._streams.values()
        await wide.until(lambda: peer._outbox._sources)
        assert peer._outbox.nbytes < 1000
        call.cancel()

    async def test_a_record_has_what_the_window_allows(self, wide_dir: Path, tmp_path: Path) -> None:
        """Large kept replies survive with their session."""
        store = f"sqlite:{tmp_path / 's.db'}"
        async with (
            serving(wide_dir, store=store, durability=Durability.SYNC) as local,
            Speaker(local.channel, "wide") as speaker,
        ):
            await speaker.open_one("a")
            await speaker.step(0, 0, ones(8))
        async with (
            serving(wide_dir, store=store, durability=Durability.SYNC) as local,
            Speaker(local.channel, "wide") as speaker,
        ):
            await speaker.open_one("a", return_replies=True)
            (answer,) = await speaker.answers(1)
            assert (answer.outputs["y"][:, 0] == np.arange(1, 9)).all()


class TestReaders:
    async def test_an_unread_forecast_gives_its_rows_back(self, wide_dir: Path) -> None:
        """Its caller hears why once it reads on."""
        async with serving(wide_dir, reader_timeout=0.3) as local:
            history = pb.History(inputs=[tensor("x", np.zeros((5_000, 1, 2), np.float32))])
            call = Caller(local.channel).inference.Forecast(
                pb.ForecastRequest(model="loop", horizon=4096, history=history)
            )
            assert (await call.read()).offset == 0
            table = local.table("loop")
            assert table.allocated == 5_000
            await local.until(lambda: not table.allocated)
            failure = await failing(read_on(call))
            assert (failure.code, failure.reason) == ("DEADLINE_EXCEEDED", "SLOW_READER")
            assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED

    async def test_one_that_never_reads_has_its_status_too(self, wide_dir: Path) -> None:
        """Even the first message, with which the call's metadata would go, is still on its way."""
        async with serving(wide_dir, reader_timeout=0.3) as local:
            history = pb.History(inputs=[tensor("x", np.zeros((30_000, 1, 2), np.float32))])
            call = Caller(local.channel).inference.Forecast(
                pb.ForecastRequest(model="loop", horizon=4096, history=history), timeout=15
            )
            table = local.table("loop")
            await local.until(lambda: table.allocated)
            await local.until(lambda: not table.allocated)
            assert (await failing(read_on(call))).reason == "SLOW_READER"

    async def test_many_unread_streams_end_and_each_has_its_status(self, wide_dir: Path) -> None:
        """Their sessions are free for others, nothing of them waits, and every one hears why."""
        count = 16
        async with serving(wide_dir, reader_timeout=0.3) as local:
            stub, calls = inference_pb2_grpc.InferenceServiceStub(local.channel), list[Any]()
            for number in range(count):
                call = stub.Stream()
                frame = pb.OpenFrame(model="wide", handles=u32(0), ids=[f"s{number}"], writer=bytes(16), incarnation=1)
                await call.write(pb.StreamRequest(frame=1, open=frame))
                inputs = [tensor("x", np.ones((20, 1), np.float32))]
                chunk = pb.ChunkFrame(handles=u32(0), positions=u64(0), steps=20, inputs=inputs)
                await call.write(pb.StreamRequest(frame=2, chunk=chunk))
                calls.append(call)
            await local.until(lambda: local.server.accounts.held > 0)
            await local.until(lambda: not len(local.server.streams))
            assert not local.server.accounts.held
            found = await asyncio.gather(*[failing(read_on(call)) for call in calls])
            assert {failure.reason for failure in found} == {"SLOW_READER"}
            async with Speaker(local.channel, "wide") as speaker:
                assert (await speaker.open_one("s0", incarnation=2)).position == 20

    async def test_a_stream_that_ends_by_an_error_while_it_writes_has_its_status(
        self, wide: Local, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No write is under way any more when the call ends: else gRPC sends nothing, and the caller waits for ever."""

        turns = itertools.count()

        def write(self: Stream, request: pb.StreamRequest) -> None:
            self._outbox.put(pb.StreamResponse(frame=request.frame, refused=pb.RefusedFrame()))
            self._outbox.full = True  # The reader waits for room.

        async def fail(self: Outbox) -> None:
            for _ in range(next(turns) % 7):
                await asyncio.sleep(0)
            raise errors.Unsupported("it is over")

        monkeypatch.setattr(Stream, "_handle", write)
        monkeypatch.setattr(Outbox, "room", fail)
        stub, calls = inference_pb2_grpc.InferenceServiceStub(wide.channel), list[Any]()
        for number in range(140):
            call = stub.Stream(timeout=15)
            await call.write(pb.StreamRequest(frame=number + 1, flush=pb.FlushFrame()))
            calls.append(call)
        found = await asyncio.gather(*[failing(read_on(call)) for call in calls])
        assert {failure.reason for failure in found} == {"UNSUPPORTED"}

    async def test_a_slow_reader_that_reads_is_waited_for(self, wide_dir: Path) -> None:
        """Progress is what counts: an answer that takes many times the limit arrives."""
        async with serving(wide_dir, reader_timeout=0.4) as local:
            call = inference_pb2_grpc.InferenceServiceStub(local.channel).Stream()
            frame = pb.OpenFrame(model="wide", handles=u32(0), ids=["a"], writer=bytes(16), incarnation=1)
            await call.write(pb.StreamRequest(frame=1, open=frame))
            inputs = [tensor("x", np.ones((60, 1), np.float32))]
            chunk = pb.ChunkFrame(handles=u32(0), positions=u64(0), steps=60, inputs=inputs)
            await call.write(pb.StreamRequest(frame=2, chunk=chunk))
            assert (await call.read()).HasField("opened")
            parts = 0
            while True:
                response: Any = await call.read()
                parts += 1
                if response.part.part + 1 == response.part.parts:
                    break
                await asyncio.sleep(0.05)
            assert parts == -(-60 * WIDTH * 4 // PART)
            call.cancel()

    async def test_nobody_watches_calls_that_are_over(self, wide: Local) -> None:
        caller = Caller(wide.channel)
        history = pb.History(inputs=[tensor("x", np.zeros((1, 1, 2), np.float32))])
        await everything(caller.inference.Forecast(pb.ForecastRequest(model="loop", horizon=3, history=history)))
        async with Speaker(wide.channel, "counter") as speaker:
            await speaker.open_one("a")
        await wide.until(lambda: not len(wide.server.streams))


async def test_a_warm_up_keeps_no_outputs(wide: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A history of a million steps has answers that nobody wants."""
    from statestream_server.engine.batch import Batch

    kept, run = list[int](), Batch.run

    def ran(self: Batch) -> float:
        seconds = run(self)
        kept.extend(len(part.work.outputs) for part in self.parts if part.work.lengths.total > 2)
        return seconds

    monkeypatch.setattr(Batch, "run", ran)
    history = pb.History(inputs=[tensor("x", np.zeros((2, 600, 2), np.float32))])
    request = pb.ForecastRequest(model="loop", horizon=2, history=history)
    assert len(await everything(Caller(wide.channel).inference.Forecast(request))) == 2
    assert set(kept) == {0}
