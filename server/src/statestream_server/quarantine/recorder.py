"""What runs now, written where it outlives the process: a small file that is mapped into memory, one for each process.

What is written to such a page is the kernel's at once: it is there after SIGKILL and after a signal in native code. A
file is locked while its process lives, so whoever finds one that can be locked reads what its process died of.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from statestream_server.arrays import Array

MOST_TAGS: Final = 4096
"""Tags that one entry holds: the rows of the largest batch."""
_ENGINE: Final = 0
"""The slot of the run of the engine."""
_LOADS: Final = 4
"""Loads that may be noted beside the run of the engine."""
_FORMAT: Final = b"SSRUN\x00\x00\x01"
_SLOT: Final = np.dtype(
    [
        ("running", "<u4"),
        ("count", "<u4"),
        ("model", "V16"),
        ("what", "S488"),
        ("tags", "<u8", (MOST_TAGS,)),
        ("at", "<u8", (MOST_TAGS,)),
    ]
)
_SIZE: Final = len(_FORMAT) + (1 + _LOADS) * _SLOT.itemsize
_SUFFIX: Final = ".running"


class Entry(NamedTuple):
    """What ran when a process died.

    Attributes:
        model: The first 16 bytes of the model's digest, or of that of its name while it was loading.
        what: In words, where one thing ran alone; else "".
        tags: What ran, each as a number that is the same in the next process.
        at: Where each began: the position of a session, else 0.
        crash: What the process wrote as it died of a signal of its own; "" where it was killed from outside.
    """

    model: bytes
    what: str
    tags: tuple[int, ...]
    at: tuple[int, ...]
    crash: str


class Recorder:
    """The file of this process. The engine notes one run at a time, loads beside it."""

    def __init__(self, folder: Path) -> None:
        """Makes the file in a folder, which is made too.

        Raises:
            OSError: It cannot be written or locked there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _fill(self._file, _SIZE)
            self._map = mmap.mmap(self._file, _SIZE)
        except OSError:
            os.close(self._file)
            self.path.unlink(missing_ok=True)
            raise
        self._map[: len(_FORMAT)] = _FORMAT
        slots = np.frombuffer(self._map, _SLOT, offset=len(_FORMAT))
        self._slots = slots
        # Views, because a field of a record array costs more than what is written to it.
        self._running, self._count, self._tags = slots["running"], slots["count"], slots["tags"][0]
        self._models, self._what, self._at = slots["model"], slots["what"], slots["at"][0]
        self._named = False
        self._model: bytes | None = None

    def hear_signals(self) -> None:
        """Has the process write into the file where it dies of a signal of its own."""
        faulthandler.enable(self._file)

    def enter(self, model: bytes, tags: Array, at: Array | int = 0, what: str = "") -> None:
        """Notes that the engine runs something now.

        Args:
            model: 16 bytes.
            tags: [n] uint64; those above MOST_TAGS are left out.
            at: [n] uint64, where each begins.
            what: In words, where it is one thing.
        """
        if model != self._model:
            self._models[0] = np.void(model)
            self._model = model
        if what or self._named:
            self._what[0] = what.encode()[:488]
            self._named = bool(what)
        count = len(tags)
        if count == 1:
            # One by itself costs a fraction of a piece of one.
            self._tags[0], self._at[0] = tags[0], at if isinstance(at, int) else at[0]
        else:
            count = min(count, MOST_TAGS)
            self._tags[:count] = tags[:count]
            self._at[:count] = at if isinstance(at, int) else at[:count]
        self._count[0] = count
        self._running[0] = 1

    def leave(self) -> None:
        """Notes that it ended, however it did."""
        self._running[0] = 0

    @contextlib.contextmanager
    def loading(self, model: bytes, tag: int, what: str) -> Iterator[None]:
        """Notes a load while it is under way; more than a few at once are not noted."""
        free = np.flatnonzero(self._running[1:] == 0)
        if not len(free):
            yield
            return
        slot = int(free[0]) + 1
        self._models[slot], self._what[slot] = np.void(model), what.encode()[:488]
        self._slots["tags"][slot, 0], self._count[slot] = tag, 1
        self._running[slot] = 1
        try:
            yield
        finally:
            self._running[slot] = 0

    def close(self) -> None:
        """Takes the file away: this process leaves in order."""
        if faulthandler.is_enabled():
            faulthandler.enable()  # To standard error again, not to a file that is gone.
        self.path.unlink(missing_ok=True)
        os.close(self._file)


class Unrecorded:
    """In place of a recorder where there is no folder."""

    def enter(self, model: bytes, tags: Array, at: Array | int = 0, what: str = "") -> None:
        """Notes nothing."""

    def leave(self) -> None:
        """Notes nothing."""


def _fill(file: int, size: int) -> None:
    """Has the disk hold a whole file: a mapped page that finds no room there ends the process when it is written.

    Raises:
        OSError: There is no room.
    """
    if (written := os.write(file, bytes(size))) < size:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {written} of {size} bytes were written")


def deaths(folder: Path) -> Iterator[list[Entry]]:
    """What processes that died had under way, a list for each; their files are taken away.

    Raises:
        OSError: The folder cannot be read.
    """
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # Another process read it first.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = path.read_bytes()
            path.unlink()
        except (BlockingIOError, FileNotFoundError):
            continue  # Its process lives.
        finally:
            os.close(file)
        if data[: len(_FORMAT)] == _FORMAT and len(data) >= _SIZE:
            yield _entries(data)


def _entries(data: bytes) -> list[Entry]:
    slots = np.frombuffer(data, _SLOT, 1 + _LOADS, len(_FORMAT))
    crash = data[_SIZE:].decode(errors="replace").strip()
    found = list[Entry]()
    for index, slot in enumerate(slots):
        if slot["running"]:
            count = min(int(slot["count"]), MOST_TAGS)
            began = dict(zip(slot["tags"][:count].tolist(), slot["at"][:count].tolist(), strict=True))
            if index == _ENGINE:
                began.pop(0, None)  # Rows of which nothing was said.
            what = slot["what"].decode(errors="replace")
            found.append(Entry(bytes(slot["model"]), what, tuple(began), tuple(began.values()), crash))
    return found
