"""The log: lines of JSON, floods that are folded, slow steps that say why, and nothing in it of what callers send."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from statestream_server import caller, logs
from statestream_server.caller import Caller as Who
from statestream_server.caller import Trace
from tests.support import models
from tests.support.calls import Caller
from tests.support.serving import serving


class Kept(logging.Handler):
    """Keeps lines of JSON."""

    def __init__(self, window: float = 60.0) -> None:
        super().__init__()
        self.lines: list[dict[str, object]] = []
        self.setFormatter(logs.Json())
        self.folding = logs.Folding(self, window)
        self.addFilter(self.folding)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        assert "\n" not in text
        self.lines.append(json.loads(text))


def record(level: int, text: str, *values: object, **about: object) -> logging.LogRecord:
    made = logging.LogRecord("statestream_server.x", level, __file__, 1, text, values, None)
    made.__dict__.update(about)
    return made


def test_a_line_says_what_is_known() -> None:
    handler = Kept()
    token = caller.current.set(Who("acme", Trace("a" * 32, "b" * 16, 1)))
    try:
        handler.handle(record(logging.WARNING, 'a "%s"\nline', "bad", model="m", session="s", request="x/Y", other=1))
    finally:
        caller.current.reset(token)
    (line,) = handler.lines
    assert str(line.pop("time")).endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "statestream_server.x",
        "message": 'a "bad"\nline',
        "tenant": "acme",
        "trace": "a" * 32,
        "model": "m",
        "session": "s",
        "request": "x/Y",
    }


def test_an_error_has_its_traceback_in_one_line() -> None:
    handler = Kept()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        made = record(logging.ERROR, "failed")
        made.exc_info = sys.exc_info()
    handler.handle(made)
    assert "two\nlines" in str(handler.lines[0]["error"])


def test_a_flood_is_folded_and_other_warnings_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("statestream_server.logs.time.monotonic", lambda: now)
    handler = Kept(window=60.0)
    for number in range(322):
        handler.handle(record(logging.WARNING, "refused %d", number, model="m"))
        handler.handle(record(logging.INFO, "info"))
    handler.handle(record(logging.WARNING, "another"))
    warned = [line["message"] for line in handler.lines if line["level"] == "warning"]
    assert warned == [*(f"refused {number}" for number in range(10)), "another"]
    assert sum(line["level"] == "info" for line in handler.lines) == 322, "what is asked for is there"
    now += 60
    handler.lines.clear()
    handler.handle(record(logging.ERROR, "much later"))
    assert [line["message"] for line in handler.lines] == ["refused 321 … 312 times more in 60 s", "much later"]
    assert handler.lines[0]["model"] == "m"
    handler.folding.close()


def test_what_was_left_out_is_told_although_nothing_else_comes() -> None:
    handler = Kept(window=0.05)
    for _ in range(11):
        handler.handle(record(logging.WARNING, "again"))
    handler.folding.join()
    assert "again … 1 times more in 0 s" in [line["message"] for line in handler.lines]


async def test_a_slow_step_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(models.write(tmp_path), slow_step=1e-9, store=f"sqlite:{tmp_path / 's.db'}") as local:
        await Caller(local.channel).step("counter", "mine", {"x": np.full((1, 1), 7777, np.float32)})
        await local.server.checkpointer.checkpoint()
    found = {record.msg: record for record in caplog.records if str(record.msg).startswith("slow")}
    step, store = (found[text] for text in sorted(found, key=lambda text: "store" in text))
    assert "slow step of counter version 1:" in step.getMessage()
    for part in ("queue", "batch", "run", "mostly in"):
        assert part in step.getMessage()
    assert step.__dict__["session"] == "mine"
    assert "a checkpoint of 1 sessions" in store.getMessage()
    assert "7777" not in caplog.text


async def test_no_value_that_a_model_refuses_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(models.write(tmp_path)) as local:
        with pytest.raises(grpc.aio.AioRpcError):
            await Caller(local.channel).step("tokens", "s", {"token": np.full((1, 1), 987654, np.int64)})
    assert "987654" not in caplog.text
