"""How far long calls are: what is told, how a bar ends, and what is said where none can be drawn; with both clients."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statestream
from statestream import aio, progress
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import FEATURES, ones
from tests.support.terminal import rest

Told = list[tuple[int, int | None]]


@pytest.fixture(autouse=True)
def all_bars_end() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    yield
    assert not progress._BOARD._bars
    assert progress._BOARD._drawn is None
    assert (sys.stdout, sys.stderr) == before


def rises(told: Told, total: int | None, last: int) -> bool:
    done = [one for one, _ in told]
    return {of for _, of in told} == {total} and done[0] == 0 and done[-1] == last and done == sorted(set(done))


async def test_a_function_is_told(connect: Connect, twin: Twin) -> None:
    client = await connect()
    told: Told = []

    def tell(done: int, total: int | None) -> None:
        told.append((done, total))

    x = np.arange(200.0).reshape(100, 2)
    assert (await twin.call(client.predict, "double", x, progress=tell) == 2 * x).all()
    assert rises(told, 100, 100)
    assert len(told) > 3, "rows are sent some at a time"
    told.clear()
    assert (await twin.call(client.predict, "double", x[:0], progress=tell)).shape == (0, 2)
    assert told == [(0, 0)]
    told.clear()
    found = await twin.call(client.forecast, "sum", [ones(2)] * 3, h=4, progress=tell)
    assert found.shape == (3, 4, FEATURES)
    assert rises(told, 3, 3)
    told.clear()
    await twin.call(client.generate, "upper", ["a", "b", "c"], progress=tell)
    assert rises(told, 3, 3)
    told.clear()
    pairs = [(f"s{number % 3}", ones()) for number in range(7)]
    assert len(await twin.collect(client.feed, "sum", pairs, progress=tell)) == 7
    assert rises(told, 7, 7)
    told.clear()
    session = await twin.call(client.session, "sum")
    assert len(await twin.collect(session.stream, [ones()] * 5, progress=tell)) == 5
    assert rises(told, 5, 5)
    told.clear()
    assert len(await twin.collect(session.stream, (ones() for _ in range(5)), progress=tell)) == 5
    assert rises(told, None, 5)
    told.clear()
    pool = await twin.call(client.sessions, "sum", 2)
    assert len(await twin.collect(pool.stream, [ones(2)] * 4, progress=tell)) == 4
    assert rises(told, 4, 4)


async def test_what_a_function_raises_ends_the_call(connect: Connect, twin: Twin) -> None:
    client = await connect()

    def tell(done: int, total: int | None) -> None:
        if done:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        await twin.call(client.predict, "double", ones(100)[:, :2], progress=tell)
    session = await twin.call(client.session, "sum")
    with pytest.raises(KeyError):
        await twin.collect(session.stream, [ones()] * 50, progress=tell)
    assert (await twin.call(session.step, ones())).shape == (FEATURES,)


async def test_a_bar_is_a_line_where_there_is_no_terminal(
    connect: Connect, twin: Twin, capsys: pytest.CaptureFixture[str]
) -> None:
    client = await connect()
    await twin.call(client.forecast, "sum", [ones(2)] * 3, h=4, progress=True)
    found = capsys.readouterr()
    assert not found.out
    assert re.fullmatch(r"forecast sum .* 3/3 series .*\n", found.err)
    await twin.call(client.classify, "double", ones(3)[:, :2], progress=True)
    assert re.fullmatch(r"classify double .* 3/3 rows .*\n", capsys.readouterr().err)
    session = await twin.call(client.session, "sum")
    with pytest.raises(statestream.BadTensor):
        await twin.collect(session.stream, [ones(), "x"], progress=True)
    assert "1/2 items, stopped" in capsys.readouterr().err


async def test_bars_of_calls_that_run_together_and_are_cancelled(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    async with aio.connect(fake.address) as client:
        many = [client.predict("double", ones(100)[:, :2], progress=True) for _ in range(3)]
        assert len(await asyncio.gather(*many)) == 3
        assert capsys.readouterr().err.count("100/100 rows") == 3
        task = asyncio.create_task(client.predict("double", ones(100)[:, :2], progress=True))
        while not progress._BOARD._bars:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "stopped" in capsys.readouterr().err


async def test_rows_may_be_more_than_a_server_takes_at_once(connect: Connect, twin: Twin, fake: Fake) -> None:
    fake.world.limits.max_message_bytes = 1000
    client = await connect()
    x = np.arange(600.0).reshape(300, 2)
    with pytest.raises(statestream.BadTensor, match="Send fewer rows at a time"):
        await twin.call(client.predict, "double", x)
    assert (await twin.call(client.predict, "double", x, progress=lambda done, total: None) == 2 * x).all()


def test_what_draws_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"rich, which is not installed: pip install 'statestream\[progress\]'"):
        progress.check_progress(True)
    progress.check_progress(print)
    monkeypatch.setattr(progress, "find_spec", lambda name: name == "rich" or None)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with pytest.raises(ImportError, match="ipywidgets, which is not installed"):
        progress.check_progress(True)


def test_pieces_are_all_rows_once() -> None:
    for rows, size, most in ((1, 8, 0), (100, 800, 0), (1000, 8000, 100), (5, 5000, 10), (0, 0, 100)):
        found = list(progress.pieces(rows, size, most))
        assert [low for low, _ in found] == [0, *(high for _, high in found[:-1])][: len(found)]
        assert (found[-1][1] if found else 0) == rows
        if most:
            assert all((high - low) * size // rows <= max(most, size // rows) for low, high in found)


TYPED = """
import statestream, sys
with statestream.connect(sys.argv[1]) as client, client.session("sum") as session:
    def forever():
        while True:
            yield [1.0] * 2
    for number, y in enumerate(session.stream(forever(), progress=True)):
        if number < 3:
            print(number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("piped", [False, True])
def test_ctrl_c_leaves_a_terminal_as_it_was(fake: Fake, piped: bool) -> None:
    """And what is printed into a file is not drawn above the bar."""
    outer, inner = pty.openpty()
    command = [sys.executable, "-c", TYPED, fake.address]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE if piped else inner, stderr=inner, env=environment, start_new_session=True
    ) as process:
        os.close(inner)
        seen = b""
        while not re.search(rb"stream sum.*[1-9][0-9,]+ items", seen):
            seen += os.read(outer, 4096)
        process.send_signal(signal.SIGINT)
        seen += rest(outer)
        printed = process.stdout.read() if process.stdout else b""
    text = seen.decode()
    assert process.returncode == -signal.SIGINT
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is there again"
    assert re.search(r"items, stopped", text)
    assert "KeyboardInterrupt" in text
    if piped:
        assert printed == b"0\n1\n2\n"


@pytest.mark.slow
def test_a_notebook_has_a_widget(tmp_path: Path, fake: Fake) -> None:
    import nbformat
    from nbclient import NotebookClient

    cell = f"""
import statestream
with statestream.connect({fake.address!r}) as client:
    y = client.predict("double", [[1.0, 2.0]] * 100, progress=True)
"""
    notebook: Any = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    client = NotebookClient(notebook, timeout=60, store_widget_state=True)
    client.execute()
    outputs = notebook["cells"][0]["outputs"]
    print(outputs)
    output = outputs[0]
    assert "application/vnd.jupyter.widget-view+json" in output["data"]
    assert "100/100 rows" in str(client.widget_state)
