"""Caps: whatever repeats and whatever is a text has one, in every message, and it is met before anything is done."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2, server_pb2, session_pb2
from statestream_server.edges.grpc.caps import Caps
from statestream_server.settings import Limits
from tests.support.arrays import tensor, u32, u64
from tests.support.calls import Caller, failing
from tests.support.counter import numbers, sums
from tests.support.serving import Local
from tests.support.speaker import Answer, Opened, Refusal, Speaker, fresh_id

CAPS = Caps(Limits())


def test_a_map_is_looked_at_entry_by_entry() -> None:
    """None of our requests has one yet; those of other protocols have."""
    kept, long = Struct(), "n" * 2000
    kept.update({"a": 1, "b": {"c": ["d"]}})
    CAPS.check(kept)
    for bad in ({long: 1}, {"a": long}, {"a": {"b": long}}, {str(number): number for number in range(1025)}):
        request = Struct()
        request.update(bad)
        with pytest.raises(errors.BadFrame):
            CAPS.check(request)


def requests() -> list[Descriptor]:
    """The request of every method."""
    files = (pb, session_pb2, model_pb2, server_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [method.input_type for service in services for method in service.methods]


def paths(kind: Descriptor, before: tuple[FieldDescriptor, ...] = ()) -> list[tuple[FieldDescriptor, ...]]:
    """The ways to every field that repeats or is a text."""
    found = []
    for field in kind.fields:
        path = (*before, field)
        if field.is_repeated or field.type == FieldDescriptor.TYPE_STRING:
            found.append(path)
        if field.message_type is not None:
            found += paths(field.message_type, path)
    return found


def filled(path: tuple[FieldDescriptor, ...]) -> Message:
    """A request with too much at the end of a path."""
    assert path[0].containing_type is not None
    request = message = GetMessageClass(path[0].containing_type)()
    for field in path[:-1]:
        inner = getattr(message, field.name)
        message = inner.add() if field.is_repeated else inner
        message.SetInParent()
    last = path[-1]
    if not last.is_repeated:
        setattr(message, last.name, "x" * 100_000)
    elif last.message_type is not None:
        for _ in range(40_000):
            getattr(message, last.name).add()
    elif last.type == FieldDescriptor.TYPE_BYTES:
        getattr(message, last.name).extend([b""] * 300_000)
    else:
        getattr(message, last.name).extend(["x" if last.type == FieldDescriptor.TYPE_STRING else 1] * 40_000)
    return request


PATHS = [path for kind in requests() for path in paths(kind)]


@pytest.mark.parametrize("path", PATHS, ids=[".".join(field.name for field in path) for path in PATHS])
def test_too_much_of_anything_is_refused_with_its_name(path: tuple[FieldDescriptor, ...]) -> None:
    """A field that is added later is among these by itself."""
    with pytest.raises(errors.BadFrame) as refused:
        CAPS.check(filled(path))
    assert refused.value.metadata["field"] == path[-1].name


def test_every_kind_of_frame_has_a_cap_on_its_sessions() -> None:
    limits = Limits()
    for kind, most in (
        ("chunk", limits.max_frame_chunks),
        ("ack", limits.max_frame_chunks),
        ("open", limits.max_frame_sessions),
        ("close", limits.max_frame_sessions),
        ("flush", limits.max_frame_sessions),
    ):
        request = pb.StreamRequest(frame=1)
        getattr(request, kind).handles = bytes(4 * most)
        CAPS.check_frame(request)
        getattr(request, kind).handles = bytes(4 * most + 4)
        with pytest.raises(errors.BadFrame) as refused:
            CAPS.check_frame(request)
        assert refused.value.metadata == {"field": "handles", "came": str(most + 1), "expected": str(most)}


@given(st.text(min_size=1), st.dictionaries(st.text(max_size=10), st.text(), max_size=3), st.integers(0, 30_000))
def test_an_error_fits_into_a_status_whatever_it_quotes(text: str, metadata: dict[str, str], times: int) -> None:
    """Its reason and the ends of its message stay."""
    error = errors.BadTensor(f"begin {text * times} end", metadata={"field": text * times} | metadata)
    status = errors.to_status(error)
    assert status.ByteSize() < 4096
    back = errors.from_status(status)
    assert back.reason == "BAD_TENSOR"
    assert back.message.startswith("begin")
    assert back.message.endswith("end")


class TestOnAServer:
    async def test_a_frame_of_unknown_handles_is_answered_in_messages_of_bounded_size(self, local: Local) -> None:
        """Each error is made when it is written: no turn of the loop has many of them."""
        async with Speaker(local.channel, "counter") as speaker:
            await speaker.open_one(fresh_id())
            local.server.turns.forget()
            count = 12_500
            await speaker.send(
                chunk=pb.ChunkFrame(
                    handles=u32(*range(1, count + 1)),
                    positions=u64(*[0] * count),
                    steps=1,
                    inputs=[tensor("x", np.ones((count, 1), np.float32))],
                )
            )
            rows = await speaker.rows(count)
            assert {row.failure.reason for row in rows if isinstance(row, Refusal)} == {"SESSION_NOT_FOUND"}
            assert len({row.handle for row in rows}) == count
            assert sums(await speaker.step(0, 0, numbers(5))) == [5]
            assert 0 < local.server.turns.errors <= 1024

    async def test_a_frame_whose_chunks_all_fail_costs_one_look_at_the_queue(
        self, local: Local, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is searched for row by row, and each chunk is answered once."""
        table, count = local.table("counter"), 3_000
        cancels = 0
        cancel = table.lane.cancel

        def counted(rows: np.ndarray) -> object:
            nonlocal cancels
            cancels += 1
            return cancel(rows)

        monkeypatch.setattr(table.lane, "cancel", counted)
        async with Speaker(local.channel, "counter") as speaker:
            await speaker.open(*(fresh_id() for _ in range(count)))
            local.server.turns.forget()
            with local.engine_held():
                await speaker.send_chunk(range(count), [0] * count, [numbers(np.nan)] * count)
                await speaker.send_chunk(range(count), [1] * count, [numbers(1)] * count)
                await local.until(lambda: table.lane.queued == 2 * count)
            rows = await speaker.rows(2 * count)
            reasons = [row.failure.reason for row in rows if isinstance(row, Refusal)]
            assert (reasons.count("NON_FINITE_STATE"), reasons.count("POSITION_GAP")) == (count, count)
            assert cancels == 0
            assert local.server.turns.errors <= 1024
            assert isinstance((await speaker.step(0, 0, numbers(5))), Answer)

    async def test_a_large_open_is_taken_in_slices(self, local: Local) -> None:
        """Others have their turns between two of them; ids are compared across all of them."""
        async with Speaker(local.channel, "counter") as speaker:
            local.server.turns.forget()
            count = 12_500
            opened = await speaker.open(*(f"s{number}" for number in range(count)))
            assert all(isinstance(one, Opened) for one in opened.values())
            assert len(opened) == count
            # Two of them may be told by the store in one turn.
            assert local.server.turns.rows <= 2 * 4096
            ids = [f"t{number}" for number in range(count - 1)] + ["t0"]
            await speaker.send(
                open=pb.OpenFrame(
                    model="counter", handles=u32(*range(count)), ids=ids, writer=speaker.writer, incarnation=9
                )
            )
            assert (await speaker.refused()).metadata["field"] == "ids"

    async def test_flushes_under_way_are_bounded(self, local: Local) -> None:
        """While the store does not answer, streams that flush on and on are not read on."""
        async with Speaker(local.channel, "counter") as speaker:
            await speaker.open_one(fresh_id())
            await speaker.step(0, 0, numbers(1))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(local.server.accounts, "most", 20 * (64 << 10))
                with local.engine_held():
                    await speaker.send_chunk([0], [1], [numbers(1)])
                    for _ in range(60):
                        await speaker.send(flush=pb.FlushFrame(handles=u32(0)))
                    await local.until(lambda: bool(local.server.accounts.waiting))
                    assert local.server.accounts.held <= 22 * (64 << 10)
                answers = [await speaker.read() for _ in range(61)]
            assert [answer.WhichOneof("response") for answer in answers if answer].count("durable") == 60

    async def test_an_output_that_is_asked_for_twice_is_refused(self, local: Local) -> None:
        request = pb.PredictRequest(model="scores", inputs=[tensor("x", np.ones((2, 4), np.float32))])
        request.outputs.extend(["scores", "best", "scores"])
        failure = await failing(Caller(local.channel).inference.Predict(request))
        assert (failure.reason, failure.metadata["field"]) == ("BAD_TENSOR", "outputs")

    async def test_budgets_refuse_their_own_kind_alone(self, local: Local) -> None:
        """Predictions that wait are counted; what is one too many is told when to try again; a step goes on."""
        caller, budgets = Caller(local.channel), local.server.budgets
        request = pb.PredictRequest(model="scores", inputs=[tensor("x", np.ones((100, 4), np.float32))])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(budgets.predictions, "most", 20_000)
            with local.engine_held():
                calls = [caller.inference.Predict(request) for _ in range(2)]
                await local.until(lambda: budgets.predictions.held > 10_000)
                failure = await failing(caller.inference.Predict(request))
                calls += [
                    caller.inference.Step(
                        pb.StepRequest(
                            model="counter", session_id="s", inputs=[tensor("x", np.ones((1, 1), np.float32))]
                        )
                    )
                ]
                await local.until(lambda: local.server.engine.queued == 1)
            assert (failure.reason, bool(failure.retry_after)) == ("OVERLOADED", True)
            assert len(await asyncio.gather(*calls)) == 3
        assert budgets.predictions.held == budgets.steps.held == 0

    async def test_forecasts_and_texts_have_limits_of_their_own(self, local: Local) -> None:
        caller = Caller(local.channel)
        text = pb.GenerateRequest(model="pair", texts=["a" * (Limits().max_text_symbols + 1)])
        failure = await failing(caller.inference.Generate(text).read())
        assert (failure.reason, failure.metadata["field"]) == ("BAD_FRAME", "texts")
        history = tensor("x", np.zeros((Limits().max_forecast_series + 1, 1, 2), np.float32))
        forecast = pb.ForecastRequest(model="loop", horizon=2, history=pb.History(inputs=[history]))
        failure = await failing(caller.inference.Forecast(forecast).read())
        assert (failure.reason, failure.metadata["field"]) == ("BAD_FRAME", "history")
        assert local.server.budgets.forecasts.held == 0
