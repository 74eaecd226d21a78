"""The same scenarios with the synchronous and the asyncio client against a real gRPC server."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pandas as pd
import pytest

import statestream
from statestream import aio, errors
from statestream.v1 import inference_pb2 as pb
from tests.client.fake_server import Fake
from tests.client.twins import Aio, Sync, Twin
from tests.client.world import FEATURES, World

Connect = Callable[..., Awaitable[Any]]


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.stop()


@pytest.fixture(params=[Sync(), Aio()], ids=lambda twin: twin.name)
def twin(request: pytest.FixtureRequest) -> Twin:
    return request.param


@pytest.fixture
async def connect(twin: Twin, fake: Fake) -> AsyncIterator[Connect]:
    clients = []

    async def connect(address: str | None = None, **kwargs: Any) -> Any:
        client = await twin.connect(address or fake.address, **kwargs)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        await twin.call(client.close)


def ones(*shape: int) -> np.ndarray:
    return np.ones((*shape, FEATURES), np.float32)


async def test_steps_keep_the_state_and_the_shape_of_their_input(connect: Connect, twin: Twin) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum", "a")
    assert session.created
    one = await twin.call(session.step, ones())
    assert one.shape == (FEATURES,)
    many = await twin.call(session.step, ones(3))
    assert many[:, 0].tolist() == [2, 3, 4]
    assert (session.position, session.id, session.version) == (4, "a", 1)
    long = await twin.call(session.step, ones(100))
    assert long[:, 0].tolist() == list(range(5, 105))


async def test_numbers_are_converted_and_the_answer_is_writable(connect: Connect, twin: Twin) -> None:
    session = await twin.call((await connect()).session, "sum")
    y = await twin.call(session.step, [1, 2])
    assert y.dtype == np.float32
    y += 1
    y = await twin.call(session.step, np.array([0.5, 0.5], np.float64))
    assert y.tolist() == [1.5, 2.5]
    y = await twin.call(session.step, {"x": [0, 0]})
    assert y.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros(3, np.float32), "shape [3]"),
        (np.zeros((2, 2, 2), np.float32), "shape [2, 2, 2]"),
        (np.zeros((0, FEATURES), np.float32), "0 steps"),
        (np.array(["a", "b"]), "dtype"),
        ({"z": [1, 2]}, "['z']"),
        ([[1, 2], [3]], "not an array"),
    ],
)
async def test_a_wrong_input_is_refused_before_it_is_sent(connect: Connect, twin: Twin, x: Any, says: str) -> None:
    session = await twin.call((await connect()).session, "sum")
    with pytest.raises(errors.BadTensor) as caught:
        await twin.call(session.step, x)
    assert says in caught.value.message
    assert session.position == 0


async def test_a_named_session_is_detached_and_resumed_an_anonymous_one_deleted(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    client = await connect()
    named = await twin.call(client.session, "sum", "station-7")
    await twin.call(named.step, ones())
    await twin.call(named.close)
    assert named.closed
    assert fake.world.durable("station-7") == 1
    with pytest.raises(errors.Closed):
        await twin.call(named.step, ones())
    again = await twin.call(client.session, "sum", "station-7", mode="resume")
    assert not again.created
    assert again.position == 1
    anonymous = await twin.call(client.session, "sum")
    await twin.call(anonymous.close)
    assert list(fake.world.rows) == ["station-7"]
    await twin.call(again.delete)
    assert not fake.world.rows


async def test_open_modes_and_missing_models_are_typed_errors(connect: Connect, twin: Twin) -> None:
    client = await connect()
    with pytest.raises(errors.SessionNotFound):
        await twin.call(client.session, "sum", "a", mode="resume")
    await twin.call(client.session, "sum", "a", mode="create")
    with pytest.raises(errors.SessionExists):
        await twin.call(client.session, "sum", "a", mode="create")
    with pytest.raises(errors.ModelNotFound):
        await twin.call(client.session, "nothing")
    with pytest.raises(errors.Unsupported, match=r"client\.predict"):
        await twin.call(client.session, "double")
    with pytest.raises(ValueError, match="mode"):
        await twin.call(client.session, "sum", "a", mode="sometimes")


async def test_a_session_stays_with_its_version_until_it_is_moved(connect: Connect, twin: Twin, fake: Fake) -> None:
    """`upgrade` names the version, True is the newest; the session goes on there over a restart, and can go back."""
    client = await connect()
    old = await twin.call(client.session, "sum", "a")
    assert (await twin.call(old.step, ones())).tolist() == [1, 1]
    fake.world.newest = 2
    with pytest.raises(errors.ModelChanged):
        await twin.call(client.session, "sum", "a", version=2)
    assert (await twin.call(client.session, "sum", "a")).version == 1
    moved = await twin.call(client.session, "sum", "a", upgrade=2)
    assert (moved.version, moved.position, moved.created) == (2, 1, False)
    await asyncio.to_thread(fake.restart)
    assert (await twin.call(moved.step, ones())).tolist() == [11, 11]
    with pytest.raises(errors.ModelChanged):
        await twin.call(client.session, "sum", "a", upgrade=9)
    assert (await twin.call(moved.step, ones())).tolist() == [21, 21]
    back = await twin.call(client.session, "sum", "a", upgrade=1)
    assert (await twin.call(back.step, ones())).tolist() == [22, 22]
    assert (await twin.call(client.session, "sum", "a", upgrade=True)).version == 2
    assert (await twin.call(client.session, "sum", "new", upgrade=False, version=1)).version == 1


async def test_a_pool_moves_its_sessions_to_one_version(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    await twin.call((await twin.call(client.sessions, "sum", ids=["a", "b"])).close)
    fake.world.newest = 2
    pool = await twin.call(client.sessions, "sum", ids=["a", "b", "c"], upgrade=True)
    assert pool.version == 2
    assert (await twin.call(pool.step, np.ones((3, FEATURES))))[:, 0].tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"upgrade": 0}, "1 or more, or True"), ({"upgrade": 2, "version": 1}, "version to move to as upgrade alone")],
)
async def test_what_upgrade_cannot_be(connect: Connect, twin: Twin, wrong: dict[str, Any], says: str) -> None:
    client = await connect()
    for call in (
        lambda: client.session("sum", "a", **wrong),
        lambda: client.sessions("sum", ids=["a"], **wrong),
        lambda: client.restore(b"", model="sum", **wrong),
    ):
        with pytest.raises(ValueError, match=says):
            await twin.call(call)


async def test_history_and_initial_state_start_a_new_session_only(connect: Connect, twin: Twin) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum", "a", initial_state={"h": [10, 20]}, history=ones(3))
    assert session.position == 3
    assert (await twin.call(session.step, ones())).tolist() == [14, 24]
    await twin.call(session.close)
    again = await twin.call(client.session, "sum", "a", history=ones(3))
    assert again.position == 4
    with pytest.raises(errors.BadTensor):
        await twin.call(client.session, "sum", initial_state={"c": [10, 20]})


async def test_stream_is_in_order_and_survives_a_cut(connect: Connect, twin: Twin, fake: Fake) -> None:
    session = await twin.call((await connect()).session, "sum")
    assert [int(y[0]) for y in await twin.collect(session.stream, ones(100))] == list(range(1, 101))
    fake.lose_replies = 3
    assert [int(y[0]) for y in await twin.collect(session.stream, ones(50), ahead=8)] == list(range(101, 151))
    assert fake.streams == 4


async def test_a_bad_chunk_leaves_the_session_where_it_was(connect: Connect, twin: Twin) -> None:
    session = await twin.call((await connect()).session, "sum")
    await twin.call(session.step, ones())
    with pytest.raises(errors.NonFiniteState):
        await twin.call(session.step, [np.nan, 0])
    assert session.position == 1
    assert (await twin.call(session.step, ones()))[0] == 2


async def test_flush_and_reset(connect: Connect, twin: Twin) -> None:
    session = await twin.call((await connect()).session, "sum", "a")
    await twin.call(session.step, ones(5))
    assert session.durable_position == 0
    assert await twin.call(session.flush) == 5
    await twin.call(session.reset)
    assert session.position == 0
    assert (await twin.call(session.step, ones()))[0] == 1


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
    with pytest.raises(errors.Unsupported, match="quantiles"):
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
    assert list(out.columns) == ["unique_id", "ds", "y_0", "y_1"]
    assert out["unique_id"].tolist() == ["b", "b", "a", "a"]
    assert out["y_1"].tolist() == [12, 24, 8, 16]
    assert out["ds"].tolist()[:2] == [pd.Timestamp("2026-01-04"), pd.Timestamp("2026-01-05")]
    plain = await twin.call(client.forecast, "sum", long[["x_0", "x_1"]].head(3), h=2)
    assert plain.index.tolist() == [3, 4]
    assert plain["y_0"].tolist() == [6, 12]
    with pytest.raises(errors.BadTensor, match="x_0"):
        await twin.call(client.forecast, "sum", long[["x_0"]])


async def test_fork_snapshot_restore(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum", "a")
    await twin.call(session.step, ones(4))
    fork = await twin.call(session.fork, "what-if")
    assert (await twin.call(fork.step, ones()))[0] == 5
    assert session.position == 4
    blob = await twin.call(session.snapshot)
    copy = await twin.call(client.restore, blob, model="sum", id="copy")
    assert copy.position == 4
    assert (await twin.call(copy.step, ones()))[0] == 5
    passing = await twin.call(session.fork)
    await twin.call(passing.close)
    assert sorted(fake.world.rows) == ["a", "copy", "what-if"]
    with pytest.raises(errors.SnapshotInvalid):
        await twin.call(client.restore, b"", model="sum")


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


async def test_pool_steps_rows_ragged_and_with_errors_by_row(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    pool = await twin.call(client.sessions, "sum", 5)
    assert len(pool) == 5
    y = await twin.call(pool.step, ones(5))
    assert y.shape == (5, FEATURES)
    y = await twin.call(pool.step, ones(2, 3), rows=[4, 0])
    assert y[:, :, 0].tolist() == [[2, 3, 4], [2, 3, 4]]
    assert pool.positions.tolist() == [4, 1, 1, 1, 4]
    y = await twin.call(pool.step, ones(5, 2), lengths=[2, 1, 0, 2, 2])
    assert y[:, :, 0].tolist() == [[5, 6], [2, 0], [0, 0], [2, 3], [5, 6]]
    x = ones(5)
    x[3] = np.nan
    with pytest.raises(statestream.PoolError) as caught:
        await twin.call(pool.step, x)
    assert list(caught.value.errors) == [3]
    assert isinstance(caught.value.errors[3], errors.NonFiniteState)
    assert isinstance(caught.value.outputs, np.ndarray)
    assert caught.value.outputs[:, 0].tolist() == [7, 3, 2, 0, 7]
    with pytest.raises(errors.BadTensor):
        await twin.call(pool.step, ones(4))
    with pytest.raises(ValueError, match="twice"):
        await twin.call(pool.step, ones(2), rows=[1, 1])
    assert (await twin.call(pool.flush)).tolist() == pool.positions.tolist()
    await twin.call(pool.close)
    assert not fake.world.rows


async def test_a_pool_that_cannot_open_lets_go_of_the_rest(connect: Connect, twin: Twin) -> None:
    client = await connect()
    await twin.call(client.session, "sum", "b")
    with pytest.raises(statestream.PoolError) as caught:
        await twin.call(client.sessions, "sum", ids=["a", "b", "c"], mode="create")
    assert list(caught.value.errors) == [1]
    pool = await twin.call(client.sessions, "sum", ids=["a", "c"], mode="resume")
    assert (await twin.call(pool.step, ones(2))).shape == (2, FEATURES)


async def test_predict_generate_models_info_sessions(connect: Connect, twin: Twin) -> None:
    client = await connect()
    assert (await twin.call(client.predict, "double", ones(3))).tolist() == [[2, 2]] * 3
    with pytest.raises(errors.BadTensor):
        await twin.call(client.predict, "double", np.ones(3))
    with pytest.raises(errors.BadTensor, match="fewer rows"):
        await twin.call(client.predict, "double", np.zeros((600_000, FEATURES), np.float32))
    assert "".join(await twin.collect(client.generate, "upper", "king")) == "KING"
    assert await twin.collect(client.generate, "upper", "king", max_tokens=2) == ["K", "I"]
    assert [model.name for model in await twin.call(client.models)] == ["sum", "double", "upper"]
    assert (await twin.call(client.load_model, "sum")).kind == "session"
    info = await twin.call(client.info)
    assert (info.protocol, info.durability, info.store) == (1, "interval", "memory")
    pool = await twin.call(client.sessions, "sum", ids=list("abcde"))
    assert [session.id for session in await twin.collect(client.list_sessions)] == list("abcde")
    await twin.call(pool.close)


async def test_calls_are_repeated_while_the_server_cannot_answer(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    fake.unary_failures = 2
    assert (await twin.call(client.predict, "double", ones(1))).tolist() == [[2, 2]]
    fake.unary_failures = 2
    assert "".join(await twin.collect(client.generate, "upper", "up")) == "UP"


async def test_outputs_that_a_crashed_caller_never_saw_come_again(connect: Connect, twin: Twin, fake: Fake) -> None:
    crashed, client = await connect(), await connect()
    for name in "ab":
        session = await twin.call(crashed.session, "sum", name)
        await twin.call(session.step, ones())
        await twin.call(session.step, ones(2))
    back = await twin.call(client.session, "sum", "a", return_replies=True)
    assert back.position == 3
    replies = list(fake.world.rows["a"].replies)
    assert replies[-1] == 1
    assert [(start, y[:, 0].tolist()) for start, y in back.replies][-1] == (1, [2, 3])
    assert [start for start, _ in back.replies] == replies
    assert (await twin.call(back.step, ones(2)))[:, 0].tolist() == [4, 5]
    assert (await twin.call(back.step, ones()))[0] == 6
    assert list(fake.world.rows["a"].replies) == [5]
    pool = await twin.call(client.sessions, "sum", ids=["c", "b"], return_replies=True)
    assert list(pool.replies) == [1]
    assert pool.replies[1][-1][0] == 1
    plain = await twin.call(client.session, "sum", "b")
    assert plain.replies == []


async def test_a_restart_is_not_seen_by_the_caller(connect: Connect, twin: Twin, fake: Fake) -> None:
    seen: list[str] = []
    client = await connect(on_reconnect=seen.append)
    session = await twin.call(client.session, "sum", "a")
    pool = await twin.call(client.sessions, "sum", 20)
    for n in range(1, 10):
        assert (await twin.call(session.step, ones()))[0] == n
        assert (await twin.call(pool.step, ones(20)))[:, 0].tolist() == [n] * 20
        if n == 3:
            fake.world.save()
        if n % 4 == 0:
            await asyncio.to_thread(fake.restart)
    assert len(seen) == 2
    assert fake.world.rows["a"].position == 9


async def test_a_step_waits_for_a_server_that_is_away(connect: Connect, twin: Twin, fake: Fake) -> None:
    session = await twin.call((await connect()).session, "sum", "a")
    fake.gate.clear()
    step = asyncio.create_task(twin.call(session.step, ones()))
    await asyncio.to_thread(fake.restart)
    assert (await asyncio.wait_for(step, 20))[0] == 1


async def test_a_server_that_lost_all_is_state_lost(twin: Twin) -> None:
    fake = Fake(World(pb.DURABILITY_MODE_NONE))
    try:
        client = await twin.connect(fake.address)
        session = await twin.call(client.session, "sum", "a")
        await twin.call(session.step, ones())
        await twin.call(session.step, ones())
        await asyncio.to_thread(fake.restart, lose_everything=True)
        with pytest.raises(errors.StateLost):
            await twin.call(session.step, ones())
        fresh = await twin.call(client.session, "sum", "a")
        assert fresh.position == 0
        await twin.call(client.close)
    finally:
        fake.stop()


async def test_after_a_go_away_the_client_moves_to_the_next_address(twin: Twin, fake: Fake) -> None:
    other = Fake(fake.world)
    try:
        client = await twin.connect(f"{fake.address},{other.address}")
        session = await twin.call(client.session, "sum", "a")
        await twin.call(session.step, ones())
        fake.go_away()
        while not other.streams:
            await twin.call(session.step, ones())
        before = session.position
        assert (await twin.call(session.step, ones()))[0] == before + 1
        await twin.call(client.close)
    finally:
        other.stop()


async def test_nothing_there_is_a_clear_error_in_time(twin: Twin) -> None:
    with pytest.raises(errors.ServerUnavailable, match="localhost:1") as caught:
        await asyncio.wait_for(twin.connect("localhost:1", connect_timeout=0.3), 5)
    assert "0.3 s" in caught.value.message
    with pytest.raises(ValueError, match="host:port"):
        await twin.connect("nowhere")


async def test_an_operation_gives_up_after_the_retry_timeout(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect(retry_timeout=0.5)
    session = await twin.call(client.session, "sum", "a")
    idle = await twin.call(client.session, "sum", "b")
    await asyncio.to_thread(fake.stop)
    with pytest.raises(errors.ServerUnavailable, match="may or may not"):
        await asyncio.wait_for(twin.call(session.step, ones()), 10)
    with pytest.raises(errors.ServerUnavailable):
        await asyncio.wait_for(twin.call(client.predict, "double", ones(1)), 10)
    fake.start()
    client2 = await connect()
    assert (await twin.call(client2.predict, "double", ones(1))).tolist() == [[2, 2]]
    again = await twin.call(client.session, "sum", "a")
    assert (await twin.call(again.step, ones()))[0] == 1
    assert (await twin.call(idle.step, ones()))[0] == 1


async def test_a_step_that_the_server_does_not_survive_is_its_callers_to_know(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    client = await connect()
    poisoned = await twin.call(client.session, "sum", "a")
    healthy = await twin.call(client.session, "sum", "b")
    fake.fault, fake.poison = grpc.StatusCode.INTERNAL, 13.0
    with pytest.raises(errors.InternalError, match="cut by the test"):
        await asyncio.wait_for(twin.call(poisoned.step, ones() * 13), 10)
    assert fake.streams <= 8
    assert (await twin.call(healthy.step, ones()))[0] == 1
    again = await twin.call(client.session, "sum", "a")
    assert (await twin.call(again.step, ones()))[0] == 1


async def test_a_server_that_fails_at_every_frame_is_not_asked_for_ever(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum", "a")
    fake.fault = grpc.StatusCode.UNKNOWN
    with pytest.raises(errors.InternalError, match="cut by the test"):
        await asyncio.wait_for(twin.call(client.session, "sum", "b"), 10)
    with pytest.raises(errors.InternalError, match="cut by the test"):
        await asyncio.wait_for(twin.call(session.flush), 10)
    fake.fault = None
    assert (await twin.call(session.step, ones()))[0] == 1


async def test_streams_that_break_again_and_again_are_no_answer(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect(retry_timeout=0.5)
    session = await twin.call(client.session, "sum", "a")
    fake.lose_replies = 1 << 30
    with pytest.raises(errors.ServerUnavailable, match="may or may not"):
        await asyncio.wait_for(twin.call(session.step, ones()), 10)
    fake.lose_replies = 0
    again = await twin.call(client.session, "sum", "a")
    assert again.position == 1


async def test_close_is_prompt_and_lets_go(twin: Twin, fake: Fake) -> None:
    client = await twin.connect(fake.address)
    named = await twin.call(client.session, "sum", "a")
    await twin.call(client.sessions, "sum", 10)
    await twin.call(named.step, ones())
    await asyncio.wait_for(twin.call(client.close), 5)
    assert list(fake.world.rows) == ["a"]
    assert fake.world.durable("a") == 1
    with pytest.raises(errors.Closed):
        await twin.call(named.step, ones())
    with pytest.raises(errors.Closed):
        await twin.call(client.models)
    gone = await twin.connect(fake.address)
    await twin.call(gone.session, "sum", "b")
    await asyncio.to_thread(fake.stop)
    await asyncio.wait_for(twin.call(gone.close), 5)


async def test_a_second_client_takes_over_and_the_first_is_told(connect: Connect, twin: Twin) -> None:
    first, second = await connect(), await connect()
    mine = await twin.call(first.session, "sum", "a")
    await twin.call(mine.step, ones())
    theirs = await twin.call(second.session, "sum", "a")
    assert theirs.position == 1
    with pytest.raises(errors.SessionMoved):
        await twin.call(mine.step, ones())
    back = await twin.call(first.session, "sum", "a")
    assert (await twin.call(back.step, ones()))[0] == 2


def public(thing: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in inspect.getmembers(thing, callable)
        if not name.startswith("_")
    }


@pytest.mark.parametrize("name", ["Client", "Session", "Pool"])
def test_the_twins_have_the_same_methods_with_the_same_parameters(name: str) -> None:
    assert public(getattr(statestream, name)) == public(getattr(aio, name))
    assert inspect.signature(statestream.connect).parameters == inspect.signature(aio.connect).parameters


def test_public_names_are_pinned() -> None:
    assert aio.__all__ == ["Client", "Pool", "Session", "connect"]
    kinds = {error.__name__ for error in errors.REASONS.values()} | {"StatestreamError"}
    own = {"Client", "Pool", "PoolError", "Session", "Settings", "connect", "aio", "errors", "__version__"}
    views = {"Limits", "Model", "ServerInfo", "SessionInfo"}
    assert set(statestream.__all__) == kinds | own | views
    assert all(hasattr(statestream, name) for name in statestream.__all__)
