"""Kept verdicts: what trials found, by the files and all else that they depend on, so that a start repeats none.

An entry is a file of JSON with its own checksum; one that is damaged, or of anything else, is none. Whoever can write
there decides what counts as proved: the folder is its owner's alone, like the store beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from statestream_server import models
from statestream_server.models.files import prints, repository
from statestream_server.models.files.prints import Print
from statestream_server.models.graphs import runtime
from statestream_server.models.graphs.runtime import Device
from statestream_server.models.model import BatchPolicy, ModelLoadError
from statestream_server.models.proof.made import Made
from statestream_server.models.proof.verdict import Verdict

_log = logging.getLogger(__name__)

_MOST_ENTRIES: Final = 1024
_MOST_BYTES: Final = 4 << 20
"""Of one entry."""
_MOST_TOTAL: Final = 256 << 20
"""Bytes of all."""
_SUFFIX: Final = ".verdict"
_LEFT_SECONDS: Final = 3600.0
"""After so long a file that was not renamed is one that a killed process left."""


class Kept:
    """Verdicts in a folder that several processes may share. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet; the folder is made when the first verdict is kept."""
        self._folder = folder
        self._code: str | None = None
        self._warned = False

    def find(
        self, files: Sequence[Print], size: str, device: Device, policy: BatchPolicy
    ) -> tuple[Verdict, Made | None] | None:
        """The verdict of a version in the files that it is known by, and its graphs where these are kept.

        None where none is kept, or weights are others.
        """
        path = self._path(files, size, device, policy)
        try:
            if not self._usable() or path.stat().st_size > _MOST_BYTES:
                return None
            checksum, _, text = path.read_text().partition("\n")
            if hashlib.sha256(text.encode()).hexdigest() != checksum:
                return None
            entry = json.loads(text)
            if entry["of"] != path.stem:  # Graphs of another file would be served.
                return None
            for name, sha256 in entry["weights"]:
                if prints.take(files[0].path.parent.resolve() / name).sha256 != sha256:
                    return None
            verdict = Verdict.loads(entry["verdict"])
            said = tuple((level, text.replace(entry["path"], str(files[0].path))) for level, text in verdict.said)
            verdict = dataclasses.replace(verdict, said=said)
            made = Made.of_values(entry["made"]) if entry["made"] is not None else None
            with contextlib.suppress(OSError):
                os.utime(path)  # What is used stays longest.
        except (OSError, ValueError, TypeError, KeyError, ModelLoadError):
            return None
        return verdict, made

    def keep(
        self,
        files: Sequence[Print],
        size: str,
        weights: Sequence[Print],
        device: Device,
        policy: BatchPolicy,
        verdict: Verdict,
        made: Made | None = None,
    ) -> None:
        """Keeps a verdict; where that cannot be, the next start tries again.

        Args:
            files: What the version is known by.
            size: Which of several sizes it is; "" where there is one.
            weights: What else it was read from.
            device: What it was tried on.
            policy: What was to be done where it answers in other bits alone than in a batch.
            verdict: What was found.
            made: Its graphs; None where they are not kept.
        """
        path, folder = self._path(files, size, device, policy), files[0].path.parent.resolve()
        fresh = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}.new")
        entry: dict[str, Any] = {
            "of": path.stem,
            "path": str(files[0].path),
            "weights": [(os.path.relpath(one.path, folder), one.sha256) for one in weights],
            "verdict": json.loads(verdict.dumps()),
            "made": made.values() if made is not None else None,
        }
        text = json.dumps(entry)
        if len(text) > _MOST_BYTES:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._usable():
                try:
                    fresh.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
                    fresh.replace(path)
                finally:
                    fresh.unlink(missing_ok=True)
                self._sweep()
        except OSError as error:
            self._warn(f"cannot be written ({error.strerror or error})")

    def _path(self, files: Sequence[Print], size: str, device: Device, policy: BatchPolicy) -> Path:
        """Where the verdict of files is kept: elsewhere for all that may make it another one."""
        if self._code is None:
            self._code = _code()
        known = [self._code, runtime.fingerprint(device), device.name, policy.value, size]
        known += [f"{_role(one.path, files[0].path)} {one.sha256}" for one in files]
        return self._folder / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:48]}{_SUFFIX}"

    def _usable(self) -> bool:
        """Whether nobody else can write there."""
        try:
            found = self._folder.stat()
        except FileNotFoundError:
            return False
        if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
            self._warn("can be written by others; make it yours alone (chmod 700)")
            return False
        return True

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s %s: every start tries all models anew", self._folder, why)

    def _sweep(self) -> None:
        """Lets the entries go that were not used for longest, and what killed processes left."""
        ages = list[tuple[float, int, Path]]()
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                found = path.stat()
                ages.append((found.st_mtime, found.st_size, path))
        left, total, count = time.time() - _LEFT_SECONDS, 0, 0
        for age, size, path in sorted(ages, reverse=True):
            gone = path.suffix == ".new" and age < left
            if path.suffix == _SUFFIX:
                total, count = total + size, count + 1
                gone = total > _MOST_TOTAL or count > _MOST_ENTRIES
            if gone:
                with contextlib.suppress(OSError):
                    path.unlink()


def _role(path: Path, first: Path) -> str:
    """What a file is to its version; how a single one is called does not matter."""
    if path.suffix != ".onnx":
        return "settling" if path.suffix == ".toml" else path.name
    return path.name if first != path or repository.pair(path) is not None else "model"


def _code() -> str:
    """What finds verdicts: our release and the very sources, and the libraries that read and rewrite graphs."""
    total = hashlib.sha256()
    for path in sorted(Path(models.__path__[0]).rglob("*.py")):
        total.update(path.read_bytes())
    releases = "; ".join(_release(name) for name in ("statestream_server", "onnx"))
    return f"{releases}; numpy {np.__version__}; Python {sys.version_info[:2]}; {total.hexdigest()}"


def _release(name: str) -> str:
    """Which release of a distribution is installed, as its folder is called.

    To import onnx, or what reads the metadata of distributions, takes longer than all else that a kept verdict needs.
    """
    for place in sys.path:
        if found := sorted(path.name for path in Path(place or ".").glob(f"{name}-*.dist-info")):
            return " ".join(found)
    from importlib import metadata

    return f"{name} {metadata.version(name)}"
