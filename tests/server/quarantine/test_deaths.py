"""Inputs that end the server process: at the second death they are refused, and everybody else goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import statestream
from statestream import errors
from statestream.command.group import main

DEADLY = 666.0
# A fault in native code that only these inputs bring out: no graph that is served has one that we know of.
_SERVE = f"""
import ctypes, sys
from statestream_server.models.graphs import runtime
from statestream_server.models.memory import fused_rows, numpy_rows
def deadly(run):
    def step(self, *arguments):
        for array in arguments[-1]:
            if (array == {DEADLY}).any():
                ctypes.string_at(0)
        return run(self, *arguments)
    return step
for kind in (fused_rows.FusedRows, numpy_rows.NumpyRows):
    kind.step = deadly(kind.step)
runtime.Graph.predict = deadly(runtime.Graph.predict)
from statestream_server.cli import serve
sys.argv[0] = "statestream serve"
serve()
"""


@dataclass
class Mortal:
    """A server that dies of DEADLY, and a supervisor that starts it again."""

    models: Path
    folder: Path
    port: int = 0
    deaths: list[int] = field(default_factory=list)

    def start(self) -> None:
        options = ["--store", f"sqlite:{self.folder / 's.db'}", "--no-http", "--device", "cpu"]
        command = [sys.executable, "-c", _SERVE, str(self.models), "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            line = stdout.readline()
        assert line.startswith("ready"), (self.folder / "log").read_text()
        self.port = int(line.split(",")[0].rsplit(":", 1)[1])

    def again(self) -> None:
        """Waits until it died, and starts it again."""
        self.deaths.append(self._process.wait(60))
        self.start()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def mortal(models_dir: Path, tmp_path: Path) -> Iterator[Mortal]:
    server = Mortal(models_dir, tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_deadly_session_is_refused_after_two_deaths_and_the_others_lose_nothing(mortal: Mortal) -> None:
    """The client replays the chunk that ended the server, and would for ever."""
    address = f"127.0.0.1:{mortal.port}"
    with statestream.connect(address, retry_timeout=60) as client:
        good = [client.session("counter", id=f"good{number}") for number in range(8)]
        bad = client.session("counter", id="bad")
        for session in (*good, bad):
            assert session.step([1.0]).item() == 1
        with pytest.raises(errors.Quarantined, match="session 'bad' of 'counter' was running in 2 deaths") as refused:
            _step_until_answered(mortal, bad)
        assert mortal.deaths == [-11, -11]
        for session in good:
            assert session.step([1.0]).item() == 2
        assert bad.position == 1
        (suspect,) = client.quarantine()
        assert (suspect.quarantined, suspect.deaths, suspect.crashes) == (True, 2, 2)
        shown = CliRunner().invoke(main, ["quarantine", address])
        assert "session 'bad' of 'counter'" in " ".join(shown.output.split())
        freed = CliRunner().invoke(main, ["quarantine", address, "--free", refused.value.metadata["quarantine"]])
        assert freed.exit_code == 0, freed.output
        assert client.quarantine() == []
        again = client.session("counter", id="bad")
        assert again.step([1.0]).item() == 2


def test_a_deadly_prediction_is_refused_after_two_deaths(mortal: Mortal) -> None:
    address, rows = f"127.0.0.1:{mortal.port}", np.full((1, 4), DEADLY, np.float32)
    with statestream.connect(address, retry_timeout=60) as client:
        with pytest.raises(errors.Quarantined, match="a call of predict"):
            _until_answered(mortal, lambda: client.predict("scores", rows))
        assert mortal.deaths == [-11, -11]
        client.predict("scores", np.ones((1, 4), np.float32))
        with pytest.raises(errors.NotFound, match="nothing in quarantine is called 'nonsense'"):
            client.free_quarantined("nonsense")


def test_what_ran_in_a_death_runs_apart_and_goes_on(mortal: Mortal) -> None:
    """Sessions that shared a batch with the guilty one run again, and nothing is held against them."""
    with (
        statestream.connect(f"127.0.0.1:{mortal.port}", retry_timeout=60) as client,
        client.sessions("counter", 64) as pool,
    ):
        x = np.ones((64, 1), np.float32)
        pool.step(x)
        x[7] = DEADLY
        with pytest.raises(statestream.PoolError) as refused:
            _until_answered(mortal, lambda: pool.step(x))
        assert {row: error.reason for row, error in refused.value.errors.items()} == {7: "QUARANTINED"}
        others = [row for row in range(64) if row != 7]
        assert np.asarray(refused.value.outputs)[others].ravel().tolist() == [2.0] * 63
        assert [one.what for one in client.quarantine() if one.quarantined] != []


def _step_until_answered(mortal: Mortal, session: statestream.Session) -> None:
    _until_answered(mortal, lambda: session.step([DEADLY]))


def _until_answered(mortal: Mortal, call: object) -> object:
    """Makes a call while a supervisor starts the server again each time it died."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(call())  # type: ignore[operator]
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(2):
        mortal.again()
    thread.join(60)
    assert found, "the call was not answered"
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
