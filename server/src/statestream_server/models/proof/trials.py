"""Trials: the processes in which models are tried before they serve, and the limits of time and memory they run under.

A process tries one model at a time and is used again; one that crashes, hangs or takes too much costs its model one
line, and the next model another process. Several run at once, so that no model waits long for another.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from statestream_server.models.model import BatchPolicy, ModelLoadError
from statestream_server.models.proof.verdict import TrialLimits, Verdict

_MOST: Final = 4
"""Processes at once."""
_PATIENCE: Final = 1.0
"""Seconds that a model waits for a process that is busy before another is started."""
_START_SECONDS: Final = 60.0
"""What a process may take to import what it needs, on a machine that has much else to do."""
_PATIENT: Final = 3
"""How many times its seconds a trial may take at most that hardly gets a processor."""
_NO_MEMORY = re.compile(r"bad_alloc")
_START = """
import sys, types
sys.path[:] = {path!r}
for name, places in {packages!r}.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = places
from statestream_server.models.proof import trial
trial.main({life})
"""
"""The packages come without what they import first: a client, gRPC, versions. That is half of what a start takes."""


def _packages() -> dict[str, list[str]]:
    return {name: [*sys.modules[name].__path__] for name in ("statestream", "statestream_server")}


class _EndedError(Exception):
    """A process ended before it took on what it was asked; it may have been leaving."""


class Trials:
    """Processes that try models. Safe to use from several threads."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._changed = threading.Condition()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._starting = 0
        self._leaving = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether nothing is tried any more."""
        return self._leaving.is_set()

    def prepare(self) -> None:
        """Starts a process if none runs: it imports what it needs while the caller does other things."""
        with self._changed:
            if self._idle or self._busy or self._starting:
                return
            self._starting += 1
        child = None
        try:
            child = _Child()
        except OSError:
            pass  # Whoever asks for a trial is told.
        finally:
            with self._changed:
                self._starting -= 1
                if child is not None:
                    self._idle.append(child)
                self._changed.notify()

    def __call__(
        self,
        path: Path,
        *,
        device: str,
        threads: int,
        apart: bool,
        policy: BatchPolicy,
        limits: TrialLimits,
        said: str | None = None,
    ) -> Verdict:
        """Tries one model as it would be served.

        Args:
            path: Its file; of an encoder-decoder the decoder's.
            device: What it is to run on, by its full name.
            threads: Processors that one run may use.
            apart: Whether the device has memory of its own.
            policy: What is done where it answers in other bits alone than in a batch.
            limits: What the trial may take.
            said: What is told of the file in place of its model.toml; None for that.

        Raises:
            ModelLoadError: It cannot be served, or it ended the trial: the file, the reason, what to do.
        """
        request = {
            "path": str(path),
            "device": device,
            "threads": threads,
            "policy": policy.value,
            "limits": limits._asdict(),
            "said": said,
        }
        while True:
            try:
                child = self._take()
            except OSError as error:
                raise ModelLoadError(f"{path}: no process could be started to try it ({error})") from error
            answer: dict[str, Any] | None = None
            try:
                answer = child.ask(path, request, limits, apart=apart)
                break
            except _EndedError:
                continue
            finally:
                self._put(child, keep=answer is not None and not answer["tired"])
        return _verdict(path, answer, limits, child.nbytes)

    def close(self) -> None:
        """Ends every process; a trial under way fails at once."""
        with self._changed:
            self._leaving.set()
            idle = self._idle.copy()
            self._idle.clear()
            for child in self._busy:
                child.kill()  # Whoever asked it hears, and lets it go.
            self._changed.notify_all()
        for child in idle:
            child.end()

    def _take(self) -> _Child:
        """A process that is idle, or a new one."""
        with self._changed:
            if not self._idle and (self._busy or self._starting):
                self._changed.wait_for(lambda: self.closed or self._idle, _PATIENCE)
            self._changed.wait_for(lambda: self.closed or self._idle or len(self._busy) + self._starting < _MOST)
            if self.closed:
                raise ModelLoadError("was not loaded: the server is leaving")
            if self._idle:
                child = self._idle.pop()
                self._busy.add(child)
                return child
            self._starting += 1
        try:
            child = _Child()
        except OSError:
            with self._changed:
                self._starting -= 1
            raise
        with self._changed:
            self._starting -= 1
            self._busy.add(child)
            if self._leaving.is_set():
                child.kill()
        return child

    def _put(self, child: _Child, *, keep: bool) -> None:
        with self._changed:
            self._busy.discard(child)
            keep = keep and not self.closed
            if keep:
                self._idle.append(child)
            self._changed.notify()
        if not keep:
            child.end()


class _Child:
    """One process. For one caller at a time, but for `kill`."""

    def __init__(self) -> None:
        import tempfile  # A start that tries nothing needs none of this.

        life, self._life = os.pipe()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # `end` closes it.
        self._rest = b""
        self._ready = self._killed = False
        self.nbytes = 0
        """Bytes of the files of the model that it tried last, as far as it came."""
        self._spent = 0.0
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, packages=_packages(), life=life)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                pass_fds=(life,),
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                bufsize=0,
            )
        except OSError:
            os.close(self._life)
            self._said.close()
            raise
        finally:
            os.close(life)

    def ask(self, path: Path, request: dict[str, Any], limits: TrialLimits, *, apart: bool) -> dict[str, Any]:
        """What it says to a request.

        Raises:
            ModelLoadError: It ended or took too long.
            _EndedError: It had ended, or left, before it began.
        """
        self.nbytes = 0
        doing, began, row = "starting", False, 0
        since = time.monotonic()
        deadline = since + _START_SECONDS
        self._spent = 0.0
        fresh = not self._ready
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
        except OSError:
            if not fresh and not self._killed:
                raise _EndedError from None
        while True:
            line = self._line(deadline)
            if line is None:
                seconds = limits.seconds_for(self.nbytes, row, apart=apart) if began else _START_SECONDS
                if time.monotonic() - since < _PATIENT * seconds and self._starved(seconds):
                    deadline = time.monotonic() + seconds / 4
                    continue
                self.kill()
                raise ModelLoadError(
                    f"{path}: took longer than {seconds:.0f} s while {doing}, and was stopped; if it only needs more"
                    " time, raise --load-timeout"
                )
            if line == {}:
                if not began and not fresh and not self._killed:
                    raise _EndedError
                raise ModelLoadError(f"{path}: {self._epitaph(doing, limits)}")
            if "ready" in line:
                self._ready = True
            elif "began" in line:
                began, since = True, time.monotonic()
                deadline = since + limits.seconds_for(0, apart=apart)
                self._spent = self._processor()[1]
            elif "doing" in line:
                doing = line["doing"]
            elif "bytes" in line:
                self.nbytes, row = line["bytes"], line["row"]
                deadline = since + limits.seconds_for(self.nbytes, row, apart=apart)
            else:
                return line

    def _starved(self, seconds: float) -> bool:
        """Whether it would run, and had less than half of a processor meanwhile: the machine has much else to do."""
        state, spent = self._processor()
        return state == "R" and spent - self._spent < seconds / 2

    def _processor(self) -> tuple[str, float]:
        """Its state, "R" where it runs or would, and the seconds of a processor that it has used."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return "", 0.0
        return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _line(self, deadline: float) -> dict[str, Any] | None:
        """The next line that it says; {} where it ended, None where nothing came in time."""
        assert self._process.stdout is not None
        place = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([place], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            more = os.read(place, 1 << 16)
            if not more:
                return {}
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return dict(json.loads(line))

    def _epitaph(self, doing: str, limits: TrialLimits) -> str:
        """Why it ended, in words."""
        status = self._process.wait()
        if self._killed:
            return "was not loaded: the server is leaving"
        self._said.seek(0)
        said = self._said.read()[-4000:].decode(errors="replace").strip()
        if _NO_MEMORY.search(said):
            return _too_much(limits, self.nbytes)
        if status == -signal.SIGKILL:
            return (
                f"the process that tried it was killed while {doing}, most likely because the machine's memory ended;"
                " give the machine more, or serve fewer models"
            )
        if status < 0:
            name = signal.strsignal(-status) or "unknown"
            return (
                f"the process that tried it ended by signal {-status} ({name}) while {doing}: this model crashes ONNX"
                " Runtime; export it otherwise (another opset, float32 instead of half precision)"
            )
        last = f": {said.splitlines()[-1]}" if said else ""
        return f"the process that tried it ended with status {status} while {doing}{last}"

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self._killed = True
        self._process.kill()

    def end(self) -> None:
        """Ends it and lets go of everything."""
        self.kill()
        self._process.wait()
        os.close(self._life)
        for file in (self._process.stdin, self._process.stdout, self._said):
            assert file is not None
            file.close()


def _verdict(path: Path, answer: dict[str, Any], limits: TrialLimits, nbytes: int) -> Verdict:
    if "verdict" in answer:
        return Verdict.loads({**answer["verdict"], "said": answer["said"]})
    if "refused" in answer:
        raise ModelLoadError(answer["refused"])
    if "memory" in answer:
        raise ModelLoadError(f"{path}: {_too_much(limits, nbytes)}")
    raise ModelLoadError(f"{path}: cannot be tried ({answer['failed']}); export it again")


def _too_much(limits: TrialLimits, nbytes: int) -> str:
    return (
        f"needed more than {limits.bytes_for(nbytes) >> 20} MiB while it was tried; if it is as large as that, raise"
        " --load-memory"
    )


_shared: Trials | None = None
_left = False
_sharing = threading.Lock()


def shared() -> Trials:
    """The processes that all of this process share."""
    global _shared
    with _sharing:
        if _shared is None or (_shared.closed and not _left):
            _shared = Trials()
            atexit.register(_shared.close)
        return _shared


def leave() -> None:
    """Ends those for good: this process is about to end, and would wait for a load that asks for another one."""
    global _left
    with _sharing:
        _left = True
    shared().close()
