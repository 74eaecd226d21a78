"""Work under suspicion of having ended a server process, and work that is not run any more.

What ran when a process died is suspected: from then on it runs apart from everything else, until it went well where it
was. What ran alone in another death is quarantined: callers are told so, until an operator frees it. Of a process that
dies of a signal of its own (a fault in native code) the second time within an hour is evidence enough. One that was
killed from outside may have eaten all memory, or may just have been in the way: there it takes the third time, and none
in between that went well.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Bools
from statestream_server.quarantine.recorder import Entry, Recorder, Unrecorded, deaths

log = logging.getLogger(__name__)

_CRASHES: Final = 2
_DEATHS: Final = 3
_POISONED: Final = 3
"""Things of one model in quarantine with which the model itself is: it is not theirs."""
_REMEMBERED: Final = 3600.0
"""Seconds after which a death is not held against what ran."""
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
        at: Where it was: the position of a session, else 0.
        apart: Whether it runs apart.
    """

    what: str
    deaths: int
    crashes: int
    since: float
    quarantined: bool = False
    at: int = 0
    apart: bool = True


class Quarantine:
    """What is suspected, in a file of the folder that the servers of one user or store share."""

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.time) -> None:
        """Nothing is suspected; without a folder nothing ever is. `clock` gives Unix time."""
        self._folder = folder
        self._clock = clock
        self._known: dict[Work, Suspicion] = {}
        self._tags: dict[bytes, Array] = {}
        self._recorder: Recorder | None = None
        self.notes: Recorder | Unrecorded = Unrecorded()
        """Where the engine notes what runs."""
        self.wary = False
        """Whether anything at all is suspected or in quarantine."""

    def hear_signals(self) -> None:
        """Has what this process dies of noted too: for whole processes, not for tests."""
        if self._recorder is not None:
            self._recorder.hear_signals()

    @contextlib.contextmanager
    def loading(self, model: bytes, what: str) -> Iterator[None]:
        """Notes that a model loads.

        Raises:
            Quarantined: It was loading in too many deaths.
        """
        self.check(model, ANYTHING)
        with contextlib.nullcontext() if self._recorder is None else self._recorder.loading(model, ANYTHING, what):
            yield
        self.survived(model, np.asarray([ANYTHING], np.uint64))

    def start(self) -> None:
        """Learns what died before, and begins to note what runs; a folder that cannot be used costs a warning."""
        if self._folder is None:
            return
        try:
            self.notes = self._recorder = Recorder(self._folder)
            with self._edited():
                for entries in deaths(self._folder):
                    self._learn(entries)
        except OSError as error:
            log.warning("what runs is not noted, and nothing that ends this process is kept from it again: %s", error)

    def close(self) -> None:
        """This process leaves in order: what runs now is not suspected."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder, self.notes = None, Unrecorded()

    def __iter__(self) -> Iterator[tuple[Work, Suspicion]]:
        """Everything that is suspected or in quarantine."""
        return iter(list(self._known.items()))

    def suspected(self, model: bytes, tags: Array) -> Bools | None:
        """Which of the tags [n] are to run apart, or not at all: `check` says; None for none of them."""
        mine = self._tags.get(model)
        if mine is None:
            return None
        found = np.isin(tags, mine) | (ANYTHING in mine)
        return found if found.any() else None

    def check(self, model: bytes, tag: int, at: int | None = None) -> None:
        """Checks that a piece of work may run.

        What a session did before it came to where it ended a server runs again: a replay must not lose it.

        Args:
            model: 16 bytes.
            tag: The work.
            at: From where it would go on, of a session.

        Raises:
            Quarantined: It may not.
        """
        for work in (Work(model, tag), Work(model, ANYTHING)):
            known = self._known.get(work)
            if known is not None and known.quarantined and (at is None or at >= known.at):
                raise errors.Quarantined(
                    f"{known.what or 'this work'} was running in {known.deaths} deaths of a server, and is not run any"
                    " more. Look at the server's log for what it died of; an operator frees it: statestream quarantine"
                    f" --free {name_of(work)}",
                    metadata={"quarantine": name_of(work)},
                )

    def survived(self, model: bytes, tags: Array, at: Array | int = 0) -> None:
        """Notes that work went well from where it began: if it was suspected from there, it is not any more."""
        if model not in self._tags:
            return
        with self._edited():
            for tag, began in zip(tags.tolist(), np.broadcast_to(at, len(tags)).tolist(), strict=True):
                work = Work(model, tag)
                suspicion = self._known.get(work)
                if suspicion is None or suspicion.quarantined or began < suspicion.at:
                    continue
                if suspicion.crashes:  # It is not what ran there, but it may be what runs next.
                    suspicion.apart, suspicion.deaths = False, suspicion.crashes
                else:
                    del self._known[work]

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
            for tag, at in zip(entry.tags, entry.at, strict=True):
                self._suspect(Work(entry.model, tag), entry, at, alone=alone)
            poisoned = [s for work, s in self._known.items() if work.model == entry.model and s.quarantined]
            if len(poisoned) >= _POISONED and Work(entry.model, ANYTHING) not in self._known:
                died = sum(one.deaths for one in poisoned)
                self._known[Work(entry.model, ANYTHING)] = Suspicion(
                    f"the model of {poisoned[-1].what}", died, died, self._clock(), quarantined=True
                )

    def _suspect(self, work: Work, entry: Entry, at: int, *, alone: bool) -> None:
        known = self._known.get(work)
        if known is None or (not known.quarantined and self._clock() - known.since > _REMEMBERED):
            known = self._known[work] = Suspicion("", 0, 0, self._clock())
        known.what, known.at, known.apart = entry.what or known.what, at, True
        # One of many is no more than suspected, however often.
        known.deaths = known.deaths + 1 if alone else max(1, known.deaths)
        known.crashes = known.crashes + bool(entry.crash) if alone else max(bool(entry.crash), known.crashes)
        if alone and not known.quarantined and (known.crashes >= _CRASHES or known.deaths >= _DEATHS):
            known.quarantined = True
            log.error("%s is in quarantine: it ran in %d deaths", known.what or f"{work.tag:x}", known.deaths)

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
            old = self._clock() - 24 * _REMEMBERED
            self._known = {work: known for work, known in self._known.items() if known.quarantined or known.since > old}
            self._write(self._folder / _FILE)
        self.wary = bool(self._known)
        self._tags = _by_model(work for work, known in self._known.items() if known.apart or known.quarantined)

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


def _by_model(some: Iterable[Work]) -> dict[bytes, Array]:
    found = dict[bytes, list[int]]()
    for model, tag in some:
        found.setdefault(model, []).append(tag)
    return {model: np.asarray(tags, np.uint64) for model, tags in found.items()}


def name_of(work: Work) -> str:
    """What an operator calls it."""
    return f"{work.model.hex()}-{work.tag:016x}"


def _work(name: str) -> Work:
    model, _, tag = name.partition("-")
    return Work(bytes.fromhex(model), int(tag, 16))
