"""Work under suspicion of having ended a server process, and work that is not run any more.

What ran when a process died is suspected: from then on it runs apart from everything else, until it went well once.
What ran alone in another death is quarantined: callers are told so, until an operator frees it. Of a process that dies
of a signal of its own (a fault in native code) the second time is evidence enough; of one that was killed from outside
the third, because it may have eaten all memory or may just have been in the way.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import numpy as np

from statestream import errors
from statestream_server.arrays import Array, Bools
from statestream_server.quarantine.recorder import Entry, Recorder, deaths

log = logging.getLogger(__name__)

_CRASHES: Final = 2
_DEATHS: Final = 3
_POISONED: Final = 3
"""Things of one model in quarantine with which the model itself is: it is not theirs."""
_FILE: Final = "suspects.json"
ANYTHING: Final = 0
"""The tag of a model as a whole."""


class Work(NamedTuple):
    """What may be suspected.

    Attributes:
        model: 16 bytes that stand for a model.
        tag: A session, a call or, as ANYTHING, all of it.
    """

    model: bytes
    tag: int


@dataclass(slots=True)
class Suspicion:
    """What is known of one piece of work.

    Attributes:
        what: In words; "" while it is one of many.
        deaths: Processes that died while it ran.
        crashes: Those of them that died of a signal of their own.
        since: Unix time of the first of them.
        quarantined: Whether it is not run any more.
    """

    what: str
    deaths: int
    crashes: int
    since: float
    quarantined: bool = False


def tag_of(*parts: str | bytes) -> int:
    """A number that stands for a session or a call in every process; never ANYTHING.

    Checksums, because every session that is opened needs one: two with the same tag share a suspicion, no more.
    """
    sum_, length = 0, 0
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sum_ = crc32(data, sum_ ^ len(data))
        length += len(data)
    return length << 32 | sum_ or 1


class Quarantine:
    """What is suspected, in a file of the folder that the servers of one user or store share."""

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.time) -> None:
        """Nothing is suspected; without a folder nothing ever is. `clock` gives Unix time."""
        self._folder = folder
        self._clock = clock
        self._known: dict[Work, Suspicion] = {}
        self._tags: dict[bytes, Array] = {}
        self.recorder: Recorder | None = None
        """What notes the work of this process."""

    def start(self) -> None:
        """Learns what died before, and begins to note what runs; a folder that cannot be used costs a warning."""
        if self._folder is None:
            return
        try:
            self.recorder = Recorder(self._folder)
            with self._edited():
                for entries in deaths(self._folder):
                    self._learn(entries)
        except OSError as error:
            log.warning("what runs is not noted, and nothing that ends this process is kept from it again: %s", error)

    def close(self) -> None:
        """This process leaves in order: what runs now is not suspected."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None

    def __iter__(self) -> Iterator[tuple[Work, Suspicion]]:
        """Everything that is suspected or in quarantine."""
        return iter(list(self._known.items()))

    def suspected(self, model: bytes, tags: Array) -> Bools | None:
        """Which of the tags [n] are to run apart; None for none of them."""
        mine = self._tags.get(model)
        if mine is None:
            return None
        found = np.isin(tags, mine)
        return found if found.any() else None

    def check(self, model: bytes, tag: int) -> None:
        """Checks that a piece of work may run.

        Raises:
            Quarantined: It may not.
        """
        if not self._known:
            return
        for work in (Work(model, tag), Work(model, ANYTHING)):
            suspicion = self._known.get(work)
            if suspicion is not None and suspicion.quarantined:
                raise errors.Quarantined(
                    f"{suspicion.what or 'this work'} was running in {suspicion.deaths} deaths of a server, and is not"
                    " run any more. Look at the server's log for what it died of; an operator frees it:"
                    f" statestream quarantine --free {name_of(work)}",
                    metadata={"quarantine": name_of(work)},
                )

    def survived(self, model: bytes, tags: Array) -> None:
        """Notes that work went well: it is not suspected any more, if it was."""
        if model not in self._tags:
            return
        with self._edited():
            for tag in tags.tolist():
                suspicion = self._known.get(Work(model, tag))
                if suspicion is not None and not suspicion.quarantined:
                    del self._known[Work(model, tag)]

    def free(self, name: str) -> Suspicion | None:
        """Takes something out of quarantine by its name; None where nothing has that name."""
        with self._edited():
            for work in self._known:
                if name_of(work) == name:
                    return self._known.pop(work)
        return None

    def _learn(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            alone = len(entry.tags) == 1
            if entry.crash:
                log.error(
                    "a server process died while it ran %s:\n%s", entry.what or f"{len(entry.tags)} rows", entry.crash
                )
            for tag in entry.tags:
                suspicion = self._known.setdefault(Work(entry.model, tag), Suspicion("", 0, 0, self._clock()))
                suspicion.what = entry.what or suspicion.what
                # One of many is no more than suspected, however often.
                suspicion.deaths = suspicion.deaths + 1 if alone else max(1, suspicion.deaths)
                suspicion.crashes = (
                    suspicion.crashes + bool(entry.crash) if alone else max(bool(entry.crash), suspicion.crashes)
                )
                if alone and (suspicion.crashes >= _CRASHES or suspicion.deaths >= _DEATHS):
                    suspicion.quarantined = True
                    log.error("%s is in quarantine: it ran in %d deaths", suspicion.what or hex(tag), suspicion.deaths)
            poisoned = [s for work, s in self._known.items() if work.model == entry.model and s.quarantined]
            if len(poisoned) >= _POISONED and Work(entry.model, ANYTHING) not in self._known:
                died = sum(one.deaths for one in poisoned)
                self._known[Work(entry.model, ANYTHING)] = Suspicion(
                    f"the model of {poisoned[-1].what}", died, died, self._clock(), quarantined=True
                )

    @contextlib.contextmanager
    def _edited(self) -> Iterator[None]:
        """Reads the file, lets it be changed, and writes it; other processes wait meanwhile."""
        if self._folder is None:
            yield
            return
        with (self._folder / f"{_FILE}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._known = self._read(self._folder / _FILE)
            yield
            self._write(self._folder / _FILE)
        self._tags = {
            model: np.asarray([work.tag for work in self._known if work.model == model], np.uint64)
            for model in {work.model for work in self._known}
        }

    @staticmethod
    def _read(path: Path) -> dict[Work, Suspicion]:
        try:
            entries = json.loads(path.read_text())
            return {_work(name): Suspicion(**known) for name, known in entries.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read, nothing is suspected: %s", path, error)
            return {}

    def _write(self, path: Path) -> None:
        fresh = path.with_suffix(f".{os.getpid()}.new")
        fresh.write_text(json.dumps({name_of(work): asdict(known) for work, known in self._known.items()}, indent=1))
        fresh.replace(path)


def name_of(work: Work) -> str:
    """What an operator calls it."""
    return f"{work.model.hex()}-{work.tag:016x}"


def _work(name: str) -> Work:
    model, _, tag = name.partition("-")
    return Work(bytes.fromhex(model), int(tag, 16))
