"""The demo, as a process of its own: it keeps its promises, says so in figures, and leaves nothing running."""

from __future__ import annotations

import dataclasses
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "demo" / "demo.py"), "--quick"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The demo as a module; its folder is where its helpers are found, as when it runs."""
    names = ("demo", "charts", "figures", "server_process")
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import demo

    yield demo
    for name in names:
        sys.modules.pop(name, None)


def figures(text: str) -> dict[str, str]:
    """The lines below the chart: what stands before two spaces or more, and what stands after."""
    return {
        found.group(1): found.group(2) for found in re.finditer(r"^ {0,2}(\w[\w ]*?) {2,}(\S.*)$", text, re.MULTILINE)
    }


def test_it_runs_twice_in_one_folder_and_keeps_its_promises(tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            [*COMMAND, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said = figures(done.stdout)
        assert said["steps"] == "lost 0, repeated 0"
        assert said["answers"].startswith("309 of 309 bit-identical")
        assert "position 309" in said["forecast"]
        pause = re.match(r"(\d+\.\d+) s of pause", said["crash"])
        assert pause
        assert 0.05 < float(pause.group(1)) < 60
        for name in ("model", "last value", "seasonal"):
            assert re.match(r"\d+\.\d / \d+\.\d", said[name])
        gap, allowed = map(float, re.findall(r"\d\.\de[-+]\d+", said["against torch"]))
        assert gap <= allowed
        assert float(said["one session"].split()[0].replace(",", "")) > 10
        assert float(said["a pool"].split()[0].replace(",", "")) > 100
        assert "SIGKILL" in done.stdout
        assert "BROKEN" not in done.stdout
        assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupt_leaves_no_server_behind(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--folder", str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            port = None
            for line in process.stderr:
                found = re.search(r"serving at 127\.0\.0\.1:(\d+)", line)
                if found:
                    port = int(found.group(1))
                    process.send_signal(signal.SIGINT)
                    break
            assert port is not None
            rest = process.stderr.read()
            assert process.wait(60) == 130, rest
        finally:
            process.kill()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_step_lost_or_repeated_is_found_and_told(
    demo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = demo.recipe.data(None)
    module = demo.recipe.module(data).eval()
    model = demo.export(module, data, tmp_path)
    first, total = data.at(demo.TEST_FROM), len(data.numbers)
    answers, forecast = demo.figures.run_in_process(model, data.numbers, first, demo.HORIZON)
    seconds = np.full(total - first, 1e-3, np.float32)
    good = demo.Streamed(answers, seconds, forecast, total, total, ("a", "b"), 0.5, 1000.0)
    assert demo.report(model, module, data, good) == []

    middle = first + 30
    repeated = np.insert(data.numbers, middle, data.numbers[middle])[:-1]
    lost = np.delete(data.numbers, middle)
    for numbers, position in ((repeated, total + 1), (lost, total - 1)):
        other, _ = demo.figures.run_in_process(model, numbers, first, demo.HORIZON)
        other = np.append(other, other[-1])[:total]
        broken = demo.report(model, module, data, dataclasses.replace(good, answers=other))
        assert any("without server and crash" in text for text in broken)
        broken = demo.report(model, module, data, dataclasses.replace(good, position=position))
        assert any("lost" in text for text in broken)
    assert "lost 1, repeated 0" in capsys.readouterr().out

    unmoved = demo.report(model, module, data, dataclasses.replace(good, position_after=total + 1))
    assert unmoved == ["the forecast moved the session"]
    unkilled = demo.report(model, module, data, dataclasses.replace(good, servers=("a", "a")))
    assert unkilled == ["the server was never killed"]
