"""Arguments that cannot be fail at the call, with both twins: what came, what was expected, and nothing is sent."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import AsyncMock, create_autospec

import numpy as np
import pandas as pd
import pytest

import statestream
from statestream import Settings, aio, causes
from statestream.arguments import parse_addresses
from statestream.errors import NonFiniteState, SessionNotFound
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import FEATURES, ones

NOT_TEXT: list[Any] = [None, 5, b"sum", ["sum"], True]
NOT_WHOLE: list[Any] = ["3", 2.0, True, [1], np.float32(2), None]
NOT_FLAGS: list[Any] = ["no", 0, 1, None]
NOT_VERSIONS: list[Any] = ["1", "", "-a", "a b", 1.0, True, [1]]
FEW: list[Any] = [0, -1, np.int64(-5)]


async def awaited(done: int, total: int | None) -> None:
    """Nobody would await it."""


class Later:
    """An asynchronous source of steps."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        yield ones()


CURSORS: Any = ([5, "x", bytearray(2), b"x" * 257], (TypeError, ValueError))
MANY_CURSORS: Any = ([5, "xy", b"xy", [b"x"], [b"x", "y"], [b"x", b"x" * 257]], (TypeError, ValueError))
FORECAST: dict[str, tuple[list[Any], Any]] = {
    "h": ([*NOT_WHOLE, *FEW, 2**32], (TypeError, ValueError)),
    "quantiles": ([5, "x", [], [0.0], [1.2], [True], [0.5, 0.5]], (TypeError, ValueError)),
    "level": (["x", [], [0], [100], [120], [None], 0.8, [80, 0.9]], (TypeError, ValueError)),
    "num_samples": (["3", 2.0, True, 0, -1, 2**32], (TypeError, ValueError)),
    "seed": (["3", 2.0, True, -1, 2**64], (TypeError, ValueError)),
    "samples": (NOT_FLAGS, TypeError),
    "bands": (["other", "conformal", 5], ValueError),
    "until": ([5, "y", ("y", "<", 1.0), ("y", "<=", "1"), ("y", "<=", float("nan"))], ValueError),
    "future": ([ones(3)], statestream.BadTensor),
}
OF_A_MODEL: dict[str, tuple[list[Any], Any]] = {
    "model": ([*NOT_TEXT, ""], (TypeError, ValueError)),
    "version": ([*NOT_VERSIONS, *FEW], (TypeError, ValueError)),
}
PROGRESS: dict[str, tuple[list[Any], Any]] = {"progress": ([None, 1, "yes", awaited], TypeError)}
NOT_COUNTS: tuple[list[Any], Any] = (["3", 2.0, True, 0, -1, 2**32], (TypeError, ValueError))
TEXTS: dict[str, tuple[list[Any], Any]] = {
    "text": ([5, None, b"king", "\ud800", 1.5, ["a", 5], [[1.5]], ["a", [1]], {"a": 1}], (TypeError, ValueError)),
    "max_tokens": NOT_COUNTS,
    "temperature": (["1", True, 0, -1.0, float("nan"), float("inf")], (TypeError, ValueError)),
    "top_k": NOT_COUNTS,
    "top_p": (["1", True, 0, -0.5, 1.5, float("nan")], (TypeError, ValueError)),
    "attention": (NOT_FLAGS, TypeError),
}
BEAMS: dict[str, tuple[list[Any], Any]] = {
    "num_beams": NOT_COUNTS,
    "n_best": ([*NOT_COUNTS[0], 2], (TypeError, ValueError)),
    "length_penalty": (["1", True, float("nan"), 17, 1.0], (TypeError, ValueError)),
    "early_stopping": ([*NOT_FLAGS, True], (TypeError, ValueError)),
}
WRONG: dict[str, dict[str, tuple[list[Any], type[Exception] | tuple[type[Exception], ...]]]] = {
    # by method: by parameter: values, and what each of them is
    "client.session": {
        "model": ([*NOT_TEXT, ""], (TypeError, ValueError)),
        "id": ([5, b"a", ["a"], "", "x" * 257, "\ud800"], (TypeError, ValueError)),
        "mode": ([None, "open", 1, ["create"]], (TypeError, ValueError)),
        "version": ([*NOT_VERSIONS, *FEW, 2**63], (TypeError, ValueError)),
        "upgrade": (["2", 1.0, 0, -1, [1]], (TypeError, ValueError)),
        "initial_state": ([5, "zeros", [1, 2], np.zeros(2)], TypeError),
        "return_replies": (NOT_FLAGS, TypeError),
    },
    "client.sessions": {
        "model": ([*NOT_TEXT, ""], (TypeError, ValueError)),
        "n": (["3", 2.0, True, -1], (TypeError, ValueError)),
        "ids": (["abc", b"abc", 5, ["a", 5], ["a", None], ["a", "a"], [""]], (TypeError, ValueError)),
        "mode": ([None, "open", 1], (TypeError, ValueError)),
        "version": ([*NOT_VERSIONS, *FEW], (TypeError, ValueError)),
        "upgrade": (["2", 1.0, 0], (TypeError, ValueError)),
        "initial_state": ([5, [1, 2]], TypeError),
        "return_replies": (NOT_FLAGS, TypeError),
    },
    "client.feed": {
        **PROGRESS,
        **OF_A_MODEL,
        "messages": ([None, 5, "xy", b"xy", {"a": ones()}, pd.DataFrame({"a": [1.0]})], TypeError),
        "ahead": (["3", 2.0, True, *FEW], (TypeError, ValueError)),
        "max_sessions": ([None, "3", 2.0, True, *FEW], (TypeError, ValueError)),
        "mode": ([None, "open", 1, ["create"]], (TypeError, ValueError)),
        "return_errors": (NOT_FLAGS, TypeError),
        "score": (NOT_FLAGS, TypeError),
    },
    "client.restore": {
        "snapshot": (["text", None, 5, ["a"]], TypeError),
        "model": ([*NOT_TEXT, ""], (TypeError, ValueError)),
        "id": ([5, "", b"a"], (TypeError, ValueError)),
        "version": ([*NOT_VERSIONS, *FEW], (TypeError, ValueError)),
        "upgrade": (["2", 1.0, 0], (TypeError, ValueError)),
    },
    "client.predict": {
        **PROGRESS,
        "model": ([*NOT_TEXT, ""], (TypeError, ValueError)),
        "outputs": (["y", 5, [5], [None], ["y", "y"]], (TypeError, ValueError)),
        "version": ([*NOT_VERSIONS, *FEW], (TypeError, ValueError)),
    },
    "client.classify": {
        **OF_A_MODEL,
        **PROGRESS,
        "top": (["3", 2.0, True, *FEW], (TypeError, ValueError)),
        "names": (["ab", 5, [5], [""]], (TypeError, ValueError)),
        "scores": ([5, "odds", True], (TypeError, ValueError)),
    },
    "client.forecast": {**OF_A_MODEL, **FORECAST, **PROGRESS},
    "client.forecast_steps": {name: wrong for name, wrong in (OF_A_MODEL | FORECAST).items() if name != "future"},
    "client.backtest": {
        **OF_A_MODEL,
        **PROGRESS,
        **{name: wrong for name, wrong in FORECAST.items() if name not in ("until", "future")},
        "step": NOT_COUNTS,
        "n_windows": NOT_COUNTS,
    },
    "client.generate": {
        **OF_A_MODEL,
        **TEXTS,
        **BEAMS,
        **PROGRESS,
        "num_samples": NOT_COUNTS,
        "seed": ([5], ValueError),
    },
    "client.generate_steps": {**OF_A_MODEL, **TEXTS, "seed": ([5], ValueError)},
    "client.load_model": {
        "name": ([*NOT_TEXT, ""], (TypeError, ValueError)),
        "version": ([*NOT_VERSIONS, *FEW], (TypeError, ValueError)),
    },
    "client.unload_model": {
        "name": ([*NOT_TEXT, ""], (TypeError, ValueError)),
        "version": ([*NOT_VERSIONS, *FEW], (TypeError, ValueError)),
    },
    "client.set_alias": {
        "name": ([*NOT_TEXT, ""], (TypeError, ValueError)),
        "alias": ([*NOT_TEXT, "", "1", "a b", "a" * 65], (TypeError, ValueError)),
        "version": (["1", 1.0, True, *FEW], (TypeError, ValueError)),
    },
    "client.free_quarantined": {"name": ([*NOT_TEXT, ""], (TypeError, ValueError))},
    "client.move_sessions": {
        "share": (["half", None, True, 0, -0.1, 1.5, float("nan")], (TypeError, ValueError)),
        "model": ([5, b"sum", ["sum"], ""], (TypeError, ValueError)),
    },
    "client.list_sessions": {"model": ([5, b"sum", ["sum"], ""], (TypeError, ValueError))},
    "session.step": {
        "x": ([None, "x", b"x", {1.0}, object(), Later()], statestream.BadTensor),
        "cursor": CURSORS,
        "score": (NOT_FLAGS, TypeError),
    },
    "session.reset": {"cursor": CURSORS},
    "session.mark": {"cursor": ([*CURSORS[0], None, b""], CURSORS[1])},
    "session.stream": {
        **PROGRESS,
        "items": ([None, 5, "xy", {"x": ones()}], TypeError),
        "ahead": (["3", 2.0, True, *FEW], (TypeError, ValueError)),
        "score": (NOT_FLAGS, TypeError),
    },
    "session.forecast": {**FORECAST, "past": ([ones(3)], ValueError)},
    "pool.forecast": {**FORECAST, "past": ([ones(3)], ValueError)},
    "session.fork": {"id": ([5, b"a", "", "x" * 257], (TypeError, ValueError))},
    "pool.step": {
        "x": ([None, "x", object()], statestream.BadTensor),
        "rows": ([5, "01", [0, 0], [9], [0.5], [True]], (ValueError, IndexError, statestream.BadTensor)),
        "lengths": ([5, "11", [1], [2.0, 1.0], [True, False], [9, 9]], statestream.BadTensor),
        "cursors": MANY_CURSORS,
        "score": (NOT_FLAGS, TypeError),
    },
    "pool.reset": {"rows": ([5, "01", [0, 0], [9], [0.5]], (ValueError, IndexError)), "cursors": MANY_CURSORS},
    "pool.mark": {
        "cursors": ([*MANY_CURSORS[0], None, [None, b"x"]], MANY_CURSORS[1]),
        "rows": ([5, "01", [0, 0], [9], [0.5]], (ValueError, IndexError)),
    },
    "pool.stream": {
        **PROGRESS,
        "items": ([None, 5, "xy", {"x": ones(2)}, pd.DataFrame({"a": [1.0]})], TypeError),
        "ahead": (["3", 2.0, True, *FEW], (TypeError, ValueError)),
        "return_errors": (NOT_FLAGS, TypeError),
        "score": (NOT_FLAGS, TypeError),
    },
}

GOOD: dict[str, dict[str, Any]] = {
    "client.session": {"model": "sum"},
    "client.sessions": {"model": "sum"},
    "client.restore": {"snapshot": b"", "model": "sum"},
    "client.feed": {"model": "sum", "messages": [("a", ones())]},
    "client.predict": {"model": "double", "x": ones(2)},
    "client.classify": {"model": "double", "x": ones(2)},
    "client.forecast": {"model": "sum", "history": ones(3)},
    "client.forecast_steps": {"model": "sum", "history": ones(3)},
    "client.backtest": {"model": "sum", "history": ones(3), "h": 1},
    "session.forecast": {"h": 2},
    "pool.forecast": {"h": 2},
    "client.generate": {"model": "upper", "text": "king"},
    "client.generate_steps": {"model": "upper", "text": "king"},
    "client.load_model": {"name": "sum"},
    "client.unload_model": {"name": "sum"},
    "client.set_alias": {"name": "sum", "alias": "stable", "version": 1},
    "client.move_sessions": {"share": 0.5},
    "session.step": {"x": ones()},
    "session.stream": {"items": [ones()]},
    "pool.step": {"x": ones(2)},
    "pool.mark": {"cursors": [b"x", b"y"]},
    "pool.stream": {"items": [ones(2)]},
}

UNTESTED = {
    "client.predict": {"x"},
    "client.classify": {"x"},
    "client.forecast": {"history"},
    "client.forecast_steps": {"history", "future"},
    "client.backtest": {"history"},
    "client.session": {"history"},
}
"""Arrays, of which tests/client/test_tables.py has more."""


def test_every_parameter_of_every_method_is_in_the_table() -> None:
    for name in ("Client", "Session", "Pool"):
        for method, member in inspect.getmembers(getattr(statestream, name), inspect.isfunction):
            where = f"{name.lower()}.{method}"
            if not method.startswith("_"):
                parameters = set(inspect.signature(member).parameters) - {"self"} - UNTESTED.get(where, set())
                assert parameters == set(WRONG.get(where, {})), where


async def called(call: Any, **arguments: Any) -> Any:
    """What a call of either twin gives, without a step of what it may give to iterate over."""
    found = call(**arguments)
    return await found if inspect.isawaitable(found) else found


@pytest.mark.parametrize("where", WRONG)
async def test_a_wrong_argument_fails_at_the_call(connect: Connect, twin: Twin, fake: Fake, where: str) -> None:
    client = await connect()
    things = {
        "client": client,
        "session": await twin.call(client.session, "sum"),
        "pool": await twin.call(client.sessions, "sum", 2),
    }
    for name in ("double", "upper", "sum"):
        await twin.call(client.load_model, name)
    owner, method = where.split(".")
    call = getattr(things[owner], method)
    for parameter, (values, kind) in WRONG[where].items():
        for value in values:
            sent, frames = len(fake.routes), len(fake.world.frames)
            with pytest.raises(kind) as caught:
                await called(call, **{**GOOD.get(where, {}), parameter: value})
            message = getattr(caught.value, "message", str(caught.value))
            assert re.search("expect|leave out|rows", message), (parameter, value, message)
            assert len(fake.world.frames) == frames, (parameter, value)
            assert {route for route, _ in fake.routes[sent:]} <= {"GetModel"}, (parameter, value)
    assert (await twin.call(things["session"].step, ones())).tolist() == [1, 1]


SETTINGS: dict[str, list[Any]] = {
    "connect_timeout": ["5", None, 0, -1, True, float("nan"), float("inf"), 1e12],
    "retry_timeout": ["5", None, 0, -1, True, float("nan")],
    "replay_buffer_bytes": ["5", None, 0, -1, True, 1e6],
    "shards": ["2", None, 0, -1, True, 1.5],
    "on_full": [None, "wait", 5, ["block"]],
    "on_reconnect": [5, "print"],
    "settings": [5, {"shards": 2}, "fast"],
    "token": [5, b"x", "", "with space", "ß", ["x"]],
    "tls": [None, 5, "yes"],
    "address": [None, 5, "", "localhost", "localhost:", "localhost:http", "localhost:0", "localhost:65536", "a/b:1"],
}


@pytest.mark.parametrize("parameter", SETTINGS)
@pytest.mark.parametrize("package", [statestream, aio])
def test_connect_fails_at_the_call(package: Any, parameter: str) -> None:
    for value in SETTINGS[parameter]:
        with pytest.raises((TypeError, ValueError), match="expected"):
            package.connect(**{parameter: value})


@pytest.mark.parametrize("parameter", ["keepalive", "replay_seconds", "max_message_bytes", "route_key"])
def test_settings_say_what_is_wrong_with_them(parameter: str) -> None:
    wrong: list[Any] = ["x\n", None, -1, True, [1]]
    for value in wrong:
        if value is None and parameter == "max_message_bytes":
            continue  # What the server gives.
        with pytest.raises((TypeError, ValueError), match=f"{parameter} is .* expected"):
            Settings(**{parameter: value})


@pytest.mark.parametrize("package", [statestream, aio])
def test_settings_and_single_ones_do_not_go_together(package: Any) -> None:
    with pytest.raises(ValueError, match="retry_timeout came beside settings"):
        package.connect("localhost:8001", retry_timeout=5.0, settings=Settings())


def test_an_address_needs_no_scheme() -> None:
    for wrong in ("http://localhost:8001", "https://localhost:8001/x", "grpc://localhost:8001"):
        with pytest.raises(
            ValueError, match=r"expected 'host:port' without (http|https|grpc)://, as in 'localhost:8001'"
        ):
            parse_addresses(wrong)
    assert parse_addresses("dns:///localhost:8001, [::1]:8001") == ("dns:///localhost:8001", "[::1]:8001")


async def test_what_was_not_awaited_says_so(fake: Fake) -> None:
    opening = aio.connect(fake.address)
    with pytest.raises(AttributeError, match=r"'session' of a client that is not open yet: await it first"):
        opening.session("sum")  # type: ignore[attr-defined]
    wrong: Any = opening
    with pytest.raises(TypeError, match=r"async with … as client"), wrong:
        pass
    assert repr(opening).startswith("<client that is not open yet: await it first (`client = await …`), or use")
    async with opening as client:
        for one in (client.session("sum"), client.sessions("sum", 2)):
            with pytest.raises(AttributeError, match=r"'step' of a (session|pool) that is not open yet"):
                one.step(ones())  # type: ignore[union-attr]
            await (await one).close()
        forgotten = client.session("sum")
        with pytest.warns(RuntimeWarning, match="a session was never opened: await it first"):
            del forgotten


async def test_a_call_that_was_not_awaited_says_so(fake: Fake) -> None:
    async with aio.connect(fake.address) as client:
        wrong: list[Callable[[Any], object]] = [
            lambda call: call[0],
            np.asarray,
            list,
            len,
            bool,
            float,
            lambda call: call.__enter__(),
            lambda call: call.__aiter__(),
        ]
        for use in wrong:
            models = client.models()
            with pytest.raises(TypeError, match=r"models\(\) of an asyncio client was not awaited: await it first"):
                use(models)
            models.close()
        for make in (lambda: client.predict("double", ones(2)), (await client.session("sum")).flush):
            call: Any = make()
            with pytest.raises(AttributeError, match=r"no 'shape' in .*: \w+\(\) of .* await it first"):
                call.shape  # noqa: B018
            assert "not awaited" in repr(call)
            call.close()
        forgotten = client.models()
        with pytest.warns(RuntimeWarning, match=r"models' was never awaited"):
            del forgotten


async def test_a_call_is_a_coroutine_to_whoever_asks(fake: Fake) -> None:
    """Tasks, groups of them, timeouts, cancels, mocks: none sees that a call is more than that."""
    async with aio.connect(fake.address) as client:
        task = asyncio.create_task(client.predict("double", ones(2)))
        await asyncio.sleep(0)
        assert task.get_stack()
        assert "predict" in repr(task)
        async with asyncio.TaskGroup() as group:
            group.create_task(client.models())
        found = await asyncio.gather(asyncio.wait_for(client.models(), 10), client.models(), task)
        assert found[0] == found[1]
        stopped = asyncio.create_task(client.predict("double", ones(2)))
        await asyncio.sleep(0)
        stopped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopped
        call = client.models()
        await call
        with pytest.raises(RuntimeError, match="already awaited"):
            await call
    assert asyncio.iscoroutinefunction(aio.Client.predict)
    assert isinstance(create_autospec(aio.Client, instance=True).predict, AsyncMock)
    assert inspect.iscoroutinefunction(aio.Session.step), "a step costs what it cost"


async def test_a_synchronous_stream_takes_no_asynchronous_source(fake: Fake) -> None:
    def walk() -> None:
        with (
            statestream.connect(fake.address) as client,
            client.session("sum") as session,
            pytest.raises(TypeError, match=r"asynchronous; expected an iterable, or the client of statestream.aio"),
        ):
            session.stream(Later())  # type: ignore[arg-type]

    await asyncio.to_thread(walk)


async def test_a_past_that_is_refused_leaves_no_session(connect: Connect, twin: Twin) -> None:
    """Else the next try would find one that exists, and go on without its past."""
    client = await connect()
    for bad, kind in ((ones(3)[:, :1], statestream.BadTensor), (np.full((3, FEATURES), np.nan), NonFiniteState)):
        with pytest.raises(kind):
            await twin.call(client.session, "sum", "station-7", history=bad)
        with pytest.raises(SessionNotFound):
            await twin.call(client.session, "sum", "station-7", mode="resume")
    session = await twin.call(client.session, "sum", "station-7", history=ones(3))
    assert (session.created, session.position) == (True, 3)
    with pytest.raises(statestream.BadTensor):
        await twin.call(client.session, "sum", "station-7", mode="replace", history=[["a", "b"]])
    assert (await twin.call(session.step, ones())).tolist() == [4, 4]


async def test_what_is_not_finite_is_named_with_its_session(connect: Connect, twin: Twin, fake: Fake) -> None:
    fake.models["sum"].signature.inputs[0].columns.extend(["a", "b"])
    client = await connect()
    session = await twin.call(client.session, "sum", "station-7")
    x = np.zeros((300, FEATURES))
    x[270, 1] = np.nan
    wanted = r"session 'station-7': x is nan in step 270 of those that came, column 'b'"
    with pytest.raises(NonFiniteState, match=wanted):
        await twin.call(session.step, x)
    pool = await twin.call(client.sessions, "sum", ids=list("pqr"))
    x = np.zeros((2, 3, FEATURES))
    x[1, 2, 0] = np.inf
    with pytest.raises(
        statestream.PoolError, match=r"1 of 2 rows failed; row 1: .*session 'p': x is inf in step 2"
    ) as caught:
        await twin.call(pool.step, x, [2, 0])
    assert "session 'p'" in str(caught.value.errors[1])


async def test_what_is_refused_of_one_session_names_it(connect: Connect, twin: Twin, fake: Fake) -> None:
    """On a stream a number stands for it; who reads a log of many sessions is told which it was."""
    client, other = await connect(), await connect()
    session = await twin.call(client.session, "sum", "station-7")
    pool = await twin.call(client.sessions, "sum", ids=list("pqr"))
    for id in ("station-7", "q"):
        await twin.call((await twin.call(other.session, "sum", id)).step, ones())

    async def moved(method: Any, *args: Any) -> statestream.StatestreamError:
        while True:  # The first steps may be answered before the claim.
            try:
                await twin.call(method, *args)
            except statestream.StatestreamError as error:
                return error

    one = await moved(session.step, ones())
    assert isinstance(one, statestream.SessionMoved)
    assert "session 'station-7'" in one.message
    many = await moved(pool.step, np.ones((3, FEATURES), np.float32))
    assert isinstance(many, statestream.PoolError)
    assert str(many).count("'q'") == 1
    assert "session 'q'" in str(many.errors[1])
    with pytest.raises(statestream.StatestreamError, match="session 'none'"):
        await twin.call(client.sessions, "sum", ids=["none"], mode="resume")
    with pytest.raises(statestream.PoolError, match="2 of 2 sessions did not open; row 0.*'none'"):
        await twin.call(client.sessions, "sum", ids=["none", "nor"], mode="resume")


def test_a_message_that_says_whose_it_is_stays_as_it_is() -> None:
    about = statestream.SessionMoved("session 'a' went", metadata={"epoch": "3"}, retry_after=2.0)
    assert causes.named(about, "a") is about
    found = causes.named(about, "b")
    assert (found.message, found.retry_after) == ("session 'b': session 'a' went", 2.0)
    assert found.metadata == {"epoch": "3", "session": "b"}
    for away in (statestream.ServerUnavailable("nobody answers"), statestream.ModelNotFound("no model 'x' is served")):
        assert causes.named(away, "a") is away


async def test_a_client_says_whose_it_is(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    assert repr(client) == f"<Client of {fake.address}>"
    await twin.call(client.close)
    assert repr(client) == f"<Client of {fake.address}, closed>"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_beams": 2, "n_best": 3}, "n_best is 3; there are 2 beams, expected so many at most"),
        ({"num_beams": 2, "temperature": 0.5}, "both num_beams and temperature are given; texts are searched or drawn"),
        ({"num_beams": 2, "num_samples": 2}, "both num_beams and num_samples are given"),
        ({"n_best": 1}, "n_best goes with num_beams, which is not given"),
        ({"length_penalty": 0.5}, "length_penalty goes with num_beams"),
        ({"seed": 5}, "seed is given, and nothing is drawn; expected one of temperature, top_k, top_p"),
        ({"num_beams": 2, "seed": 5}, "seed is given, and nothing is drawn"),
    ],
)
async def test_ways_that_do_not_go_together(connect: Connect, twin: Twin, given: dict[str, Any], words: str) -> None:
    client = await connect()
    with pytest.raises(ValueError, match=words):
        await twin.call(client.generate, "upper", "king", **given)


async def test_tokens_come_of_one_text(connect: Connect, twin: Twin) -> None:
    client = await connect()
    with pytest.raises(ValueError, match="tokens come of one text at a time"):
        await twin.collect(client.generate_steps, "upper", ["king"])
