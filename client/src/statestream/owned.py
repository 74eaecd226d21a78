"""A server of the caller's own: a child process behind a Unix socket, which ends when the caller does.

Nothing here waits for gRPC, NumPy or protobuf: the child is to import its own while the caller imports these.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

READY: Final = b"ready:"
START_SECONDS: Final = 60.0
"""What a start may take where nobody says otherwise; a large model is tried before it serves."""
_LEAVE_SECONDS: Final = 15.0
"""What a server may take to save and leave before it is ended."""
_LAST_LINES: Final = 12
_USAGE: Final = 2
"""The exit status of a command that was called with what it does not know."""
_MOST_PATH: Final = 90
"""Bytes of the folder of a socket: the system takes 107 of the whole path."""
_CHILD: Final = "import sys; sys.path[:] = {path!r}; from statestream_server.beside import main; main()"

Models = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A .onnx file, a folder of models, or several of both."""


class Owned:
    """A server in a child process. It leaves with `close`, or when this process ends, however that is.

    Attributes:
        address: Where it answers, for any client of this machine's user.
        pid: Its process.
    """

    def __init__(self, models: Models, options: dict[str, Any], timeout: float = START_SECONDS) -> None:
        """Starts it; `wait` returns once it answers.

        Raises:
            Unsupported: The server is not installed here, and what to install.
            FileNotFoundError: There is no such model.
            TypeError: That is no path, or an option is no text, number or bool.
        """
        paths = _paths(models)
        arguments = _arguments(options)
        if find_spec("statestream_server") is None:
            from statestream.contract.errors import Unsupported

            raise Unsupported(
                "statestream.local starts a server, which is another package and not installed here:"
                " pip install 'statestream-server[cpu]'; statestream.connect calls one that runs elsewhere"
            )
        self._timeout = timeout
        self._began = time.monotonic()
        self._folder = _private_folder()
        self._said = os.open(f"{self._folder}/log", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        weakref.finalize(self, os.close, self._said).atexit = False
        where = ["--unix", f"{self._folder}/grpc"] if sys.platform != "win32" else []
        self.address = f"unix:{self._folder}/grpc"
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _CHILD.format(path=sys.path),
                    str(os.getpid()),
                    *where,
                    *arguments,
                    "--",
                    *paths,
                ],
                stdin=subprocess.PIPE,  # Its end, which the child hears, is that of this process.
                stdout=subprocess.PIPE,
                stderr=self._said,
                bufsize=0,
                # Ctrl-C on the terminal is for the caller, who may go on.
                start_new_session=sys.platform != "win32",
                # What the server is told comes from the call alone.
                env={name: value for name, value in os.environ.items() if not name.startswith("STATESTREAM_")},
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        if sys.platform != "win32":
            os.unlink(f"{self._folder}/log")  # It lives as long as who can read it.
        self.pid = self._process.pid
        self._dropped = weakref.finalize(self, _drop, self._process, self._folder, os.getpid())

    def wait(self) -> None:
        """Returns once the server answers.

        Raises:
            ServerUnavailable: It did not start; with what it said.
        ValueError: There is no such option, or it has no such value.
        """
        stdout = self._process.stdout
        assert stdout is not None
        late = threading.Timer(max(0.0, self._began + self._timeout - time.monotonic()), self._process.kill)
        late.daemon = True
        late.start()
        try:
            line = stdout.readline()
        except (OSError, ValueError):
            line = b""  # Closed meanwhile.
        finally:
            late.cancel()
        if line.startswith(READY):
            if sys.platform == "win32":
                self.address = line.split()[-1].decode()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVE_SECONDS)
        took = time.monotonic() - self._began
        if self._process.returncode == _USAGE:
            raise ValueError(f"statestream.local was told what no server knows; it said:\n{_last(self.log())}")
        why = f"gave no answer within {self._timeout:g} s" if took >= self._timeout else f"ended ({self._ended()})"
        from statestream.contract.errors import ServerUnavailable

        raise ServerUnavailable(f"the server of statestream.local {why}. It said:\n{_last(self.log())}")

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process.poll() is None

    def log(self) -> str:
        """What it has said so far; the same after it has ended."""
        os.lseek(self._said, 0, os.SEEK_SET)  # It is written at its end, wherever that is read.
        return os.read(self._said, os.fstat(self._said).st_size).decode(errors="replace")

    def close(self) -> None:
        """Has it save what is to be saved and leave; returns when it is gone. In a forked process nothing happens."""
        if found := self._dropped.detach():
            _end(*found[2])

    def kill(self) -> None:
        """Ends it at once: nothing is saved."""
        self._process.kill()
        self.close()

    def _ended(self) -> str:
        status = self._process.returncode
        return f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"

    def __repr__(self) -> str:
        return f"<server {self.pid} at {self.address}{'' if self.running else ', gone'}>"


def _drop(process: subprocess.Popen[bytes], folder: str, owner: int) -> None:
    """What becomes of a server that nobody has any more: whoever dropped it does not wait, unless all ends here."""
    try:
        threading.Thread(target=_end, args=(process, folder, owner), name="statestream", daemon=True).start()
    except RuntimeError:
        _end(process, folder, owner)


def _end(process: subprocess.Popen[bytes], folder: str, owner: int) -> None:
    if os.getpid() != owner:
        process.returncode = 0  # A forked process has a copy of this, and no such child to wait for.
        return
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    except BaseException:  # Ctrl-C once more: whoever asks twice waits for nothing.
        process.kill()
        process.wait()
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _private_folder() -> str:
    """A folder that nobody else may enter, whose path leaves room for a socket's."""
    folder = tempfile.mkdtemp(prefix="statestream-")
    if len(os.fsencode(folder)) > _MOST_PATH and os.path.isdir("/tmp"):
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="statestream-", dir="/tmp")
    return folder


def _paths(models: object) -> list[str]:
    several = [*models] if isinstance(models, list | tuple | set | frozenset) else [models]
    if not several:
        raise ValueError("models is empty; expected a .onnx file or a folder of models, as in local('models/')")
    return [_path(one) for one in several]


def _path(model: object) -> str:
    if not isinstance(model, str | os.PathLike):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        hint = ""
        if hasattr(model, "state_dict") and hasattr(model, "forward"):
            hint = (
                "; write a module to a file first:"
                " statestream_export.export(module, example, path='model.onnx', states={…}), then local('model.onnx')"
            )
        elif hasattr(model, "SerializeToString"):
            hint = "; write it to a file first: onnx.save(model, 'model.onnx'), then local('model.onnx')"
        raise TypeError(f"models is of type {kind}; expected the path of a .onnx file or of a folder of models{hint}")
    path = Path(os.fsdecode(model)).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist (looked for in {Path.cwd()}); expected a .onnx file or a folder of models"
        )
    return str(path.absolute())


def _arguments(options: dict[str, Any]) -> list[str]:
    """Options as `statestream serve` takes them: `checkpoint_interval=0.5` is `--checkpoint-interval 0.5`."""
    given = {"store": "memory", **options}
    if given["store"] == "memory":
        # Nothing outlives this server, so nothing is noted for one after it.
        given.setdefault("quarantine", "none")
    found = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if isinstance(value, bool):
            found.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, str | int | float | os.PathLike):
            found.append(f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
        else:
            raise TypeError(
                f"{name} is {value!r}; expected a text, a number or a bool: what `statestream serve {flag}` takes"
            )
    return found


def _last(log: str) -> str:
    lines = log.strip().splitlines()
    left = len(lines) - _LAST_LINES
    return "\n".join(
        ([f"  … {left} lines before"] if left > 0 else []) + [f"  {line}" for line in lines[-_LAST_LINES:]]
    )
