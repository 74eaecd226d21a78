"""Fingerprints of files: the SHA-256 of their bytes, and the list of those that an operator trusts."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from statestream_server.models.files import files, modelfile
from statestream_server.models.files.files import Stamp
from statestream_server.models.files.repository import pair, settling
from statestream_server.models.model import ModelLoadError

_LINE = re.compile(r"\\?([0-9a-fA-F]{64})(?:\s.*)?")


class Print(NamedTuple):
    """A file as it was, and the SHA-256 of what was in it, in hex."""

    stamp: Stamp
    sha256: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.stamp.path

    def changed(self) -> bool:
        """Whether it looks other now: its size, its time, or that it is another file, or none."""
        try:
            return files.stamp(self.path) != self.stamp
        except ModelLoadError:
            return True


def take(path: Path) -> Print:
    """Reads a file once.

    Raises:
        ModelLoadError: It cannot be read, or is written meanwhile.
    """
    stamp, total = files.stamp(path), hashlib.sha256()
    for block in files.blocks(path):
        total.update(block)
    stamp.check()
    return Print(stamp, total.hexdigest())


def named(path: Path) -> list[Path]:
    """What a version is known to be read from before anything of it is: its file, of a pair both; what settles it.

    Of a chain it is the model.toml, and the files that it names.
    """
    if path.suffix == ".toml":
        return [path, *modelfile.parts(path)]
    files, more = [path], list[Path]()
    if couple := pair(path):
        from statestream_server.models.files import generation

        files, more = [*couple], generation.files_of(couple[1])
    beside = dict.fromkeys(settling(each) for each in files)
    return [*files, *(each for each in (*beside, *more) if os.path.lexists(each))]


class Trust(NamedTuple):
    """A list of SHA-256: nothing else is loaded. It is read anew each time, so that a line can be added meanwhile.

    Attributes:
        path: The list; each line begins with one, as `sha256sum` writes it. Empty lines and `#` say nothing.
    """

    path: Path

    def read(self) -> frozenset[str]:
        """What is trusted.

        Raises:
            ModelLoadError: The list cannot be read.
        """
        try:
            lines = self.path.read_text(errors="replace").splitlines()
        except OSError as error:
            raise ModelLoadError(
                f"{self.path}: the list of trusted files cannot be read ({error.strerror}), so nothing is loaded"
            ) from error
        found = set[str]()
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                match = _LINE.fullmatch(line.strip())
                if match is None:
                    raise ModelLoadError(
                        f"{self.path}: line {number} does not begin with a SHA-256; write it with sha256sum"
                    )
                found.add(match[1].lower())
        return frozenset(found)

    def check(self, some: Iterable[Print]) -> None:
        """Checks that files may be loaded.

        Raises:
            ModelLoadError: One may not: the line to add.
        """
        trusted = self.read()
        for one in some:
            if one.sha256 not in trusted:
                raise ModelLoadError(
                    f"{one.path}: is not trusted; if you know where it comes from, add to {self.path} the line:"
                    f" {one.sha256}  {one.path.name}"
                )
