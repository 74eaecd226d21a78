"""The benchmark of Silero VAD, on small sizes: nothing is measured of a server that answers otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as bench
from benchmarks import page, processes
from benchmarks import voice as measured
from tests.support import others, voice


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    voice.source("silero_vad.onnx")
    monkeypatch.setattr(measured, "CALLS", 16)
    monkeypatch.setattr(measured, "SIZES", (1, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_streams_a_core_are_measured_behind_a_server_that_answers_as_the_package(tmp_path: Path) -> None:
    results, found = measured.measure(tmp_path, 1, 0.05)
    assert len(results) == 4
    assert all(result.ours > 1 < result.other for result in results)
    assert all(len(medians) == 2 for medians in found["streams"].values())
    assert "| streams a core, by calls at once | 1 | 2 |" in page.voice(found)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_nothing_is_measured_where_a_bit_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = voice.wrapped

    def other(*arguments: Any) -> voice.Samples:
        scores = heard(*arguments)
        scores.view("uint32")[-1] ^= 1
        return scores

    measured.make(tmp_path / "models")
    calls = voice.calls(16, steps=3)
    with processes.statestream(tmp_path / "models", tmp_path) as server:
        measured.compare(server, calls)
        monkeypatch.setattr(voice, "wrapped", other)
        with pytest.raises(measured.DiffersError, match="call 0 of 16"):
            measured.compare(server, calls)


@pytest.mark.slow
def test_without_the_package_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "found", lambda package, file: None)
    done = CliRunner().invoke(bench.main, ["--only", measured.NAME, "--rounds", "1"])
    assert measured.MISSING in done.output
