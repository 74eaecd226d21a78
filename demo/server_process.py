"""The demo's server: the real `statestream serve` as a child process that can be killed and started again."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0


class ServerError(Exception):
    """The server did not start: what its log says last."""


class ServerProcess:
    """`statestream serve` over a models folder, with its sessions in sqlite and every reply on disk before it leaves.

    Used as a context manager: whatever ends the block, no process is left behind.

    Attributes:
        port: The port of the first start; later starts use the same. 0 before the first.
    """

    def __init__(self, models: Path, store: Path, log: Path) -> None:
        """Nothing runs yet; the server's log goes to `log`."""
        self.port = 0
        self._models = models
        self._store = store
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        # A thread may be starting the server anew while another ends the demo.
        self._starting = threading.Lock()
        self._over = False

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> float:
        """Starts the server and waits until it answers.

        Returns:
            The seconds that it took.

        Raises:
            ServerError: It ended, was not ready in a minute, or `stop` came first.
        """
        began = time.perf_counter()
        command = [
            *(str(Path(sys.executable).with_name("statestream")), "serve", str(self._models)),
            *("--host", "127.0.0.1", "--port", str(self.port), "--no-http"),
            *("--store", f"sqlite:{self._store}", "--durability", "sync"),
        ]
        with self._starting, self._log.open("a") as log:
            if self._over:
                raise ServerError("the server was stopped for good")
            process = self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        ready = _first_line(process.stdout)
        try:
            line = ready.get(timeout=_START_SECONDS)
        except queue.Empty:
            line = ""
        # ready: gRPC on HOST:PORT
        if not line.startswith("ready:"):
            self.kill()
            raise ServerError(f"the server did not start; {self._log} ends with:\n{_tail(self._log)}")
        self.port = int(line.split(",")[0].rpartition(":")[2])
        return time.perf_counter() - began

    def kill(self) -> None:
        """SIGKILL: the process ends at once, whatever it was doing."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that takes too long. No server starts here afterwards."""
        with self._starting:
            self._over = True
            process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        finally:
            process.kill()
            process.wait()


def _first_line(stream: IO[str]) -> queue.Queue[str]:
    """The first line of a stream once it is there; "" where the stream ends without one."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: lines.put(stream.readline()), daemon=True).start()
    return lines


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-10:])
