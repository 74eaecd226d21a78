"""What tests leave behind must not keep a run from its end: processes, threads, fixtures that do not end.

Each is told and makes the run fail.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

_MARK = "STATESTREAM_TEST_RUN"
_TEST = "PYTEST_CURRENT_TEST"
"""What pytest calls the test that runs, which processes inherit."""
_ENDING_SECONDS = 5.0
"""A process that was asked to end may take as long."""
_TEARDOWN_SECONDS, _RING_SECONDS = 60.0, 10.0
"""What fixtures may take to end after a failure, and the time between two alarms."""
_STDERR = 2
_EXIT_SECONDS = 20.0
"""After the report, threads get as long to end."""


def pytest_configure() -> None:
    os.environ[_MARK] = uuid.uuid4().hex


def to_outlast() -> dict[str, str]:
    """The environment for a process that is meant to outlast the run, as a container engine is."""
    return {name: value for name, value in os.environ.items() if name != _MARK}


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer() -> Generator[None, object, object]:
    """An alarm is an exception in whatever runs then; where that is a task which somebody else awaits, nobody stops."""
    done = yield
    if left := signal.getitimer(signal.ITIMER_REAL)[0]:
        signal.setitimer(signal.ITIMER_REAL, left, _RING_SECONDS)
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    with _ringing():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    with _ringing():
        done = yield
    if told := [_ended(pid) for pid in _outlasting()]:
        session.config.stash[_told] = told
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
    return done


@contextlib.contextmanager
def _ringing() -> Iterator[None]:
    """pytest-timeout stops the clock when a test fails; its fixtures may still wait for ever."""
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    before = signal.signal(signal.SIGALRM, _ring)
    # Each alarm ends one wait, and behind it may be another.
    signal.setitimer(signal.ITIMER_REAL, _TEARDOWN_SECONDS, _RING_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _ring(_number: int, _frame: object) -> None:
    faulthandler.dump_traceback()
    pytest.fail("the fixtures of a test that failed did not end in time")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_told, []):
        terminalreporter.write_line(f"LEFT BEHIND, killed: {line}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    # The interpreter waits for threads. This prints where they are, and exits with status 1.
    faulthandler.dump_traceback_later(_EXIT_SECONDS, exit=True, file=_STDERR)


_told = pytest.StashKey[list[str]]()


def _outlasting() -> list[int]:
    """The processes of this run that do not end by themselves."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while (left := list(_processes())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def _processes() -> Iterator[int]:
    """The processes that tests of this run started, orphans too; none where there is no /proc."""
    mark = f"{_MARK}={os.environ[_MARK]}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            # Python's own, which ends with this process.
            if mark in (place / "environ").read_bytes().split(b"\0") and b"resource_tracker" not in _command(place):
                yield int(place.name)
        except OSError:
            continue  # It ended meanwhile, or is another user's.


def _command(place: Path) -> bytes:
    return (place / "cmdline").read_bytes().replace(b"\0", b" ").strip()


def _ended(pid: int) -> str:
    """Kills a process; which one it was, and whose."""
    place = Path(f"/proc/{pid}")
    try:
        command = _command(place).decode(errors="replace")
        names = dict(one.partition("=")[::2] for one in (place / "environ").read_text(errors="replace").split("\0"))
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return f"process {pid}, which ended meanwhile"
    return f"process {pid} of {names.get(_TEST, 'no test')}: {command}"
