"""A run of pytest ends, and says why, whatever its tests leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = """
from tests import leftovers
leftovers._ENDING_SECONDS = leftovers._TEARDOWN_SECONDS = leftovers._RING_SECONDS = leftovers._EXIT_SECONDS = {seconds}
pytest_plugins = ["tests.leftovers"]
"""


def run(folder: Path, test: str, seconds: float = 0.5) -> subprocess.CompletedProcess[str]:
    """Runs one file of tests by itself, which must end long before what its tests left would.

    After `seconds` what goes on is stopped; where nothing should be, a busy machine may take long to end.
    """
    (folder / "conftest.py").write_text(CONFTEST.format(seconds=seconds))
    (folder / "test_it.py").write_text(test)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:asyncio",
            "--rootdir",
            str(folder),
            "-c",
            os.devnull,
            "--timeout",
            "1",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def gone(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_processes_are_killed_and_a_failure_also_orphans(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import subprocess, sys

def test_child():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    print(child.pid, file=open("pids", "a"))

def test_orphan():
    subprocess.run(["sh", "-c", "sleep 999 >&- 2>&- & echo $! >> pids"], check=True)

def test_one_that_ends_by_itself():
    subprocess.Popen(["sleep", "0.3"])
""",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("LEFT BEHIND")]
    assert len(told) == 2, done.stdout
    assert any("test_it.py::test_child (call): " in line and "time.sleep(1000)" in line for line in told)
    assert any("test_it.py::test_orphan (call): sleep 999" in line for line in told)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 20
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.005)


def test_a_process_may_be_meant_to_outlast_the_run(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import subprocess, sys
from tests import leftovers

def test_engine():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], env=leftovers.to_outlast())
    print(child.pid, file=open("pid", "w"))
""",
        seconds=30,
    )
    pid = int((tmp_path / "pid").read_text())
    assert not gone(pid)
    os.kill(pid, signal.SIGKILL)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_thread_that_does_not_end_is_shown_and_a_failure(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import threading

def waits_for_ever():
    threading.Event().wait()

def test_thread():
    threading.Thread(target=waits_for_ever).start()
""",
    )
    assert "1 passed" in done.stdout
    assert done.returncode == 1
    assert "waits_for_ever" in done.stderr


@pytest.mark.slow
def test_fixtures_that_do_not_end_after_a_failure_are_stopped(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import threading, pytest

@pytest.fixture
def outer():
    yield
    threading.Event().wait()

@pytest.fixture
def inner(outer):
    yield
    threading.Event().wait()

def test_that_fails(inner):
    assert 0

def test_that_is_stopped(outer):
    threading.Event().wait()

def test_that_swallows_an_alarm():
    try:
        threading.Event().wait()
    except BaseException:
        threading.Event().wait()

def test_next():
    pass
""",
    )
    assert done.returncode == 1
    assert "3 failed, 1 passed" in done.stdout
    assert "2 errors" in done.stdout
    assert done.stdout.count("Failed: the fixtures of a test that failed did not end in time") >= 3, done.stdout
