"""The file of a model's aliases: names of versions, beside the folders of these. Read strictly, and edited.

    stable = 3
    canary = 4

It is aliases.toml in the folder that is called like the model: NAME/aliases.toml beside NAME/3/model.onnx.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from statestream.contract.aliases import MOST_ALIAS, is_alias
from statestream.contract.errors import shortened
from statestream_server.models.files.repository import ALIASES, HIGHEST_VERSION, Scan, folder_of

_MOST_BYTES: Final = 64 << 10
_LONGEST: Final = 256
"""Characters of a line: a key of many parts takes tomllib their cube."""
_MOST: Final = 256
"""Aliases of one model."""


class AliasesError(Exception):
    """A file says no aliases; the text says why, and names it."""


@dataclass(slots=True)
class Told:
    """What the files of all models say.

    Attributes:
        names: By model the versions by alias; of every model that has a file, or had none of its own.
        wrong: Why what is said of a model cannot be taken, in words that name the file.
    """

    names: dict[str, dict[str, int]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


def told(scan: Scan) -> Told:
    """Reads the files of the models that were found."""
    folders = dict[str, set[Path]]()
    for found in scan.found:
        folders.setdefault(found.name, set()).add(folder_of(found.path))
    all_told = Told()
    for name, places in folders.items():
        names = dict[str, int]()
        try:
            for folder in sorted(places):
                for alias, version in read(folder / ALIASES).items():
                    if names.setdefault(alias, version) != version:
                        raise AliasesError(
                            f"{folder / ALIASES}: {alias} is {version}, and {names[alias]} in another folder of"
                            f" {name!r}; have both name one version, or keep one of the files"
                        )
        except AliasesError as error:
            all_told.wrong[name] = str(error)
        else:
            all_told.names[name] = names
    return all_told


def read(path: Path) -> dict[str, int]:
    """The versions that a file names, by alias; none where there is no file.

    Raises:
        AliasesError: It cannot be read, or says something else.
    """
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise AliasesError(f"{path}: {error.strerror or error}") from error
    return dict(_read(path, stat.st_ino, stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(1 << 12)
def _read(path: Path, inode: int, changed: int, size: int) -> dict[str, int]:
    """The same; read once until it changed."""
    if size > _MOST_BYTES:
        raise AliasesError(f"{path} has {size:,} bytes; expected lines such as stable = 3, {_MOST_BYTES:,} at most")
    try:
        return _loads(path.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise AliasesError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _loads(text: str) -> dict[str, int]:
    """Reads what a file holds.

    Raises:
        ValueError: It is no TOML, or has something else than aliases.
    """
    longest = max(map(len, text.splitlines()), default=0)
    if longest > _LONGEST:
        raise ValueError(f"it has a line of {longest:,} characters; expected lines such as stable = 3")
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("lists or tables lie too deep in each other") from error
    if len(values) > _MOST:
        raise ValueError(f"it has {len(values)} aliases; expected {_MOST} at most")
    for alias, version in values.items():
        if not is_alias(alias):
            raise ValueError(
                f"{shortened(alias)!r} is no alias; expected 1 to {MOST_ALIAS} letters, digits, '-', '_' and '.', the"
                " first a letter"
            )
        if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= HIGHEST_VERSION:
            raise ValueError(
                f"{alias} is {shortened(repr(version))}; expected the number of a version, as in {alias} = 3"
            )
    return values


def edit(folder: Path, alias: str, version: int | None) -> dict[str, int]:
    """Has an alias name a version in the file of a folder, or takes it out; what the file says then.

    Its other lines stay as they are. Whoever reads it sees it before or after, and of two who edit it one waits.

    Raises:
        AliasesError: The file there is none of aliases.
        OSError: It cannot be written.
    """
    path = folder / ALIASES
    folder.mkdir(exist_ok=True)
    with _alone(folder):
        names = read(path)
        text = path.read_text(encoding="utf-8") if names or path.exists() else ""
        if version is None:
            names.pop(alias, None)
        else:
            names[alias] = version
        edited = _edited(text, alias, version)
        try:
            same = _loads(edited) == names
        except ValueError:
            same = False
        if not same:  # A key in quotes, or a line that only looks like one.
            edited = "".join(f"{_key(name)} = {number}\n" for name, number in names.items())
        _replace(path, edited)
    return names


def _edited(text: str, alias: str, version: int | None) -> str:
    """The text with the line of an alias as it is to be."""
    line = f"{_key(alias)} = {version}"
    pattern = re.compile(rf"^[ \t]*{re.escape(_key(alias))}[ \t]*=[ \t]*[\d_]+(?P<rest>[ \t]*(?:#[^\n]*)?)$", re.M)
    if version is None:
        return re.sub(pattern.pattern + r"\n?", "", text, count=1, flags=re.M)
    edited, count = pattern.subn(lambda match: line + match["rest"], text, count=1)
    if count:
        return edited
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n"


def _key(alias: str) -> str:
    """An alias as a key of TOML; one with dots is in quotes."""
    return f'"{alias}"' if "." in alias else alias


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process edits what lies in a folder."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _replace(path: Path, text: str) -> None:
    """Puts a file in the place of another, whole or not at all."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as fresh:
        try:
            fresh.write(text.encode())
            fresh.flush()
            os.fsync(fresh.fileno())
            os.fchmod(fresh.fileno(), mode)
            os.replace(fresh.name, path)
        except BaseException:
            os.unlink(fresh.name)
            raise
