"""Calls beside the stream (predict, generate, forecast, models, snapshots), with both clients."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pandas as pd
import pytest

import statestream
from statestream import errors
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import FEATURES, ones


async def test_predict_generate_models_info_sessions(connect: Connect, twin: Twin) -> None:
    client = await connect()
    assert (await twin.call(client.predict, "double", ones(3))).tolist() == [[2, 2]] * 3
    with pytest.raises(errors.BadTensor):
        await twin.call(client.predict, "double", np.ones(3))
    with pytest.raises(errors.BadTensor, match="fewer rows"):
        await twin.call(client.predict, "double", np.zeros((600_000, FEATURES), np.float32))
    assert await twin.call(client.generate, "upper", "king") == "KING"
    assert await twin.call(client.generate, "upper", ["king", "up"], max_tokens=2) == ["KI", "UP"]
    assert "".join(await twin.collect(client.generate_steps, "upper", "king")) == "KING"
    assert [model.name for model in await twin.call(client.models)] == ["sum", "double", "upper"]
    assert (await twin.call(client.load_model, "sum")).kind == "session"
    await twin.call(client.unload_model, "sum")
    with pytest.raises(errors.ModelNotFound):
        await twin.call(client.unload_model, "nothing")
    info = await twin.call(client.info)
    assert (info.protocol, info.durability, info.store) == (1, "interval", "memory")
    pool = await twin.call(client.sessions, "sum", ids=list("abcde"))
    assert [session.id for session in await twin.collect(client.list_sessions)] == list("abcde")
    await twin.call(pool.close)


async def test_forecast_runs_from_the_session_or_a_history(connect: Connect, twin: Twin) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum")
    await twin.call(session.step, ones())
    rows = await twin.collect(session.forecast, 3)
    assert [row.tolist() for row in rows] == [[2, 2], [4, 4], [8, 8]]
    assert session.position == 1
    one = await twin.call(client.forecast, "sum", ones(3), h=2)
    assert one.tolist() == [[6, 6], [12, 12]]
    several = await twin.call(client.forecast, "sum", ones(4, 3), h=2)
    assert several.shape == (4, 2, FEATURES)
    with pytest.raises(errors.Unsupported, match="has no head.*conformal"):
        await twin.call(client.forecast, "sum", ones(3), quantiles=[0.5])
    with pytest.raises(ValueError, match="h is 0"):
        await twin.call(client.forecast, "sum", ones(3), h=0)


async def test_forecast_of_a_table_is_a_table(connect: Connect, twin: Twin) -> None:
    client = await connect()
    days = pd.date_range("2026-01-01", periods=3, freq="D")
    long = pd.DataFrame(
        {
            "unique_id": ["b"] * 3 + ["a"] * 2,
            "ds": [*days, *days[:2]],
            "x_0": 1.0,
            "x_1": 2.0,
        }
    )
    out = await twin.call(client.forecast, "sum", long, h=2)
    assert list(out.columns) == ["unique_id", "ds", "sum-y_0", "sum-y_1"]
    assert out["unique_id"].tolist() == ["b", "b", "a", "a"]
    assert out["sum-y_1"].tolist() == [12, 24, 8, 16]
    assert out["ds"].tolist()[:2] == [pd.Timestamp("2026-01-04"), pd.Timestamp("2026-01-05")]
    plain = await twin.call(client.forecast, "sum", long[["x_0", "x_1"]].head(3), h=2)
    assert plain.index.tolist() == [3, 4]
    assert plain["y_0"].tolist() == [6, 12]
    with pytest.raises(errors.BadTensor, match="x_0"):
        await twin.call(client.forecast, "sum", long[["x_0"]])


async def test_calls_are_repeated_while_the_server_cannot_answer(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    fake.unary_failures = 2
    assert (await twin.call(client.predict, "double", ones(1))).tolist() == [[2, 2]]
    fake.unary_failures = 2
    assert await twin.call(client.generate, "upper", "up") == "UP"


async def test_all_that_a_client_asks_carries_one_route_key(connect: Connect, twin: Twin, fake: Fake) -> None:
    client, other = await connect(), await connect(settings=statestream.Settings(route_key="station-7"))
    del fake.routes[:]
    session = await twin.call(client.session, "sum", "a")
    await twin.call(session.fork, "b")
    await twin.call(session.snapshot)
    await twin.collect(session.forecast, 1)
    await twin.call(client.predict, "double", ones(1))
    await asyncio.to_thread(fake.restart)
    await twin.call(session.step, ones())
    keys = {key for _, key in fake.routes if key != "station-7"}
    methods = {method for method, key in fake.routes if key in keys}
    assert methods >= {"Stream", "ForkSession", "SnapshotSession", "Forecast", "Predict", "GetModel", "GetServerInfo"}
    assert len(keys) == 1
    assert len(keys.pop()) >= 16
    del fake.routes[:]
    await twin.call((await twin.call(other.session, "sum", "c")).snapshot)
    assert "station-7" in {key for method, key in fake.routes if method == "SnapshotSession"}
    with pytest.raises(ValueError, match="ASCII"):
        statestream.Settings(route_key="Zürich")


async def test_a_session_that_another_server_has_is_moved_and_the_call_made_again(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    session = await twin.call((await connect()).session, "sum", "a")
    await twin.call(session.step, ones())
    epoch = fake.world.rows["a"].epoch
    for n, call in enumerate((session.snapshot, session.fork), start=1):
        fake.not_owner = 1
        await twin.call(call)
        assert fake.world.rows["a"].epoch == epoch + n
    fake.not_owner = 1
    assert [row.tolist() for row in await twin.collect(session.forecast, 2)] == [[2, 2], [4, 4]]
    fake.not_owner = 3
    with pytest.raises(errors.NotOwner):
        await twin.call(session.snapshot)
    assert (await twin.call(session.step, ones()))[0] == 2
    fake.not_owner = 3
    with pytest.raises(errors.NotOwner):
        await twin.collect(session.forecast, 2)
    assert (await twin.call(session.step, ones()))[0] == 3


async def test_a_default_version_with_other_inputs_is_noticed(connect: Connect, twin: Twin, fake: Fake) -> None:
    """Another version was loaded while the client ran: what fits it is sent, what does not is refused as before."""
    client = await connect()
    assert (await twin.call(client.predict, "double", ones(3))).shape == (3, FEATURES)
    newer = fake.models["double"]
    newer.version, newer.signature.inputs[0].shape[1] = 2, 3
    with pytest.raises(errors.BadTensor):
        await twin.call(client.predict, "double", np.ones((3, 5), np.float32))
    assert (await twin.call(client.predict, "double", np.ones((4, 3), np.float32))).shape == (4, 3)
    asked = len([method for method, _ in fake.routes if method == "GetModel"])
    with pytest.raises(errors.BadTensor, match="shape"):
        await twin.call(client.predict, "double", ones(3))
    assert len([method for method, _ in fake.routes if method == "GetModel"]) == asked + 1


async def test_answers_are_taken_as_large_as_the_server_gives_them(
    connect: Connect, twin: Twin, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that tells of larger answers than the usual is connected to anew; one's own limit holds."""
    monkeypatch.setattr(statestream.settings, "USUAL_ANSWER", 1 << 10)
    monkeypatch.setattr(statestream.settings, "ANSWER_OVERHEAD", 1 << 10)
    fake.world.limits.max_answer_bytes = 1 << 20
    client = await connect()
    x = np.ones((100_000, FEATURES), np.float32)
    assert (await twin.call(client.predict, "double", x)).shape == x.shape
    client = await connect(settings=statestream.Settings(max_message_bytes=100_000))
    with pytest.raises(errors.AnswerTooLarge, match=r"larger than this client takes.*raise Settings.max_message_bytes"):
        await twin.call(client.predict, "double", x)


async def test_a_request_that_is_too_large_is_not_sent(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    with pytest.raises(errors.InvalidRequest, match=r"5,\d+,\d+ bytes; this server takes at most 4,194,304"):
        await twin.call(client.restore, bytes(5_200_000), model="sum")
    with pytest.raises(errors.BadTensor, match=r"series 0 has 4,800,000 bytes.*Send less of its past"):
        await twin.call(client.forecast, "sum", np.zeros((600_000, FEATURES), np.float32), h=1)


class Between:
    """A server that goes where a call has just heard that it is there, and is there again for the next who asks."""

    def __init__(self, link: Any) -> None:
        self._link = link
        self._channels = [None, link._channel]

    def is_set(self) -> bool:
        self._link._channel = self._channels.pop(0)
        return True

    def wait(self, _seconds: float) -> bool:
        return self.is_set()


async def test_a_server_that_goes_just_before_a_call_is_no_closed_client(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await connect()
    between = Between(client._link)
    with monkeypatch.context() as patch:
        patch.setattr(client._link, "_online", between)
        assert (await twin.call(client.load_model, "sum")).kind == "session"
    assert not between._channels
