"""What careless callers do to a real server: each message says what came, what was expected, what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import statestream
from statestream import aio
from statestream_server.settings import Settings, StartError, check_models, check_reach
from tests.support.pages import ROOT

DATES = pd.DataFrame({"sunspots": pd.to_datetime(["2020-01-01"])})
WORDS = pd.DataFrame({"sunspots": ["many"]})
NAN = float("nan")


@pytest.fixture(scope="module")
def client() -> Iterator[statestream.Client]:
    with statestream.local(ROOT / "deploy" / "models") as client:
        yield client


SAID: list[tuple[str, Callable[[Any, Any], Any], type[Exception], str]] = [
    (
        "a version as text",
        lambda c, s: c.session("sunspots", version="1"),
        ValueError,
        "version is '1'; expected an alias.*a version's number has no quotes",
    ),
    (
        "ids in place of n",
        lambda c, s: c.sessions("sunspots", ["a", "b"]),
        TypeError,
        r"n is \['a', 'b'\] of type list; .*ids=\[…\]",
    ),
    ("dates", lambda c, s: s.step(DATES), ValueError, "column 'sunspots' of x has dtype datetime64.*Convert it"),
    ("words", lambda c, s: s.step(WORDS), ValueError, "column 'sunspots' of x has dtype .*expected numbers.*Convert"),
    ("an object", lambda c, s: s.step(object()), ValueError, "of type object .*expected numbers of dtype float32"),
    ("two features", lambda c, s: s.step([1, 2]), ValueError, r"shape \[2\]; .*expects \[1\] a step.*reshape\(-1, 1\)"),
    (
        "a scheme",
        lambda c, s: statestream.connect("http://localhost:8001"),
        ValueError,
        "without http://, as in 'localh",
    ),
    (
        "h as text",
        lambda c, s: c.forecast("sunspots", [[1.0]], h="3"),
        TypeError,
        "h is '3' of type str; expected a whole",
    ),
    (
        "a number to generate",
        lambda c, s: c.generate("antonyms", 5),
        TypeError,
        "text is 5 of type int; expected a str",
    ),
    (
        "a text to restore",
        lambda c, s: c.restore("s", model="sunspots"),
        TypeError,
        "expected the bytes that .*snapshot",
    ),
    ("NaN", lambda c, s: s.step([[1.0], [NAN]]), ValueError, "x is nan in step 1 .*column 'sunspots'"),
    (
        "NaN of one row",
        lambda c, s: c.sessions("sunspots", 2).step([[1.0], [NAN]]),
        Exception,
        "row 1: .*column 'sunspots'",
    ),
    (
        "NaN of one series",
        lambda c, s: c.forecast("sunspots", [[[1.0]], [[NAN]]], h=2),
        ValueError,
        "nan in series 1, row 0 of 1, column 'sunspots' of x; .*fill them, or export it with missing=",
    ),
    (
        "a mode",
        lambda c, s: c.session("sunspots", mode="resum"),
        ValueError,
        "mode is 'resum'; expected one of 'create'",
    ),
    ("a model", lambda c, s: c.session("moon"), Exception, "no model 'moon' is served; served: antonyms, "),
]


@pytest.mark.parametrize(("do", "kind", "says"), [one[1:] for one in SAID], ids=[one[0] for one in SAID])
def test_what_cannot_be_says_so(client: statestream.Client, do: Any, kind: type[Exception], says: str) -> None:
    with client.session("sunspots") as session:
        with pytest.raises((kind, statestream.StatestreamError), match=says):
            do(client, session)
        assert session.step([1.0]).shape == (1,), "nobody pays for it"


def test_what_is_meant_well_is_taken(client: statestream.Client) -> None:
    with client.session("sunspots") as session:
        assert session.step(pd.Series([1.0, 2, 3])).shape == (3, 1), "one feature"
        assert session.step(torch.ones(1, requires_grad=True)).shape == (1,)
        assert session.step(torch.ones(1, dtype=torch.bfloat16)).shape == (1,)
    assert client.forecast("sunspots", pd.Series([1.0, 2, 3]), h=2).shape == (2, 1)


def test_a_forgotten_await_says_so(client: statestream.Client) -> None:
    server = client.server
    assert server is not None

    async def forget() -> None:
        async with aio.connect(server.address) as other:
            opening = other.session("sunspots")
            with pytest.raises(AttributeError, match=r"await it first \(`session = await …`\)"):
                opening.step([1.0])  # type: ignore[attr-defined]
            await (await opening).close()

    asyncio.run(forget())


def test_reprs_are_a_line(client: statestream.Client) -> None:
    for shown in map(repr, [client, client.server, *client.models(), client.session("sunspots")]):
        assert "\n" not in shown
        assert len(shown) < 200
    assert "<Model sunspots version 1 (session): x float32[?, ?, 1] → y float32[?, ?, 1]>" in map(repr, client.models())


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (None, "does not exist; point the server at a file.onnx, or at a folder of"),
        ("", "is empty; expected NAME.onnx, NAME/model.onnx or NAME/VERSION/model.onnx"),
        ("net.txt", "there is .*net.txt; expected NAME.onnx"),
    ],
)
def test_a_folder_with_nothing_to_serve(tmp_path: Path, there: str | None, says: str) -> None:
    folder = tmp_path / "models"
    if there is not None:
        folder.mkdir()
        if there:
            (folder / there).write_text("no model")
    with pytest.raises(StartError, match=says):
        check_models(Settings((folder,)))


def test_a_server_for_all_without_a_guard() -> None:
    with pytest.raises(StartError, match="this server asks nobody who they are.*--host 127.0.0.1, the default"):
        check_reach(Settings((), host="0.0.0.0"))
