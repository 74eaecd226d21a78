"""The file of a model's aliases: names of versions, beside the folders of these. Read strictly, and edited.

    stable = 3
    canary = 4

It is aliases.toml in the folder that is called like the model: NAME/aliases.toml beside NAME/3/model.onnx.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import stat
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_MOST_TRIES: Final = 3
"""Readings of files that disagree: somebody may be at it."""
_MOST_WAITED: Final = 10.0
"""Seconds for which another process may edit; one that was stopped at it would hold up others for good."""
_PAUSE: Final = 0.02


class AliasesError(Exception):
    """A file says no aliases; the text says why, and names it."""


class _Disagreement(AliasesError):
    """Files of one model have an alias name two versions."""


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
        try:
            all_told.names[name] = _said(name, [folder / ALIASES for folder in sorted(places)])
        except AliasesError as error:
            all_told.wrong[name] = str(error)
    return all_told


def _said(name: str, paths: Sequence[Path]) -> dict[str, int]:
    """What the files of a model say together.

    Raises:
        AliasesError: One says none, or they disagree.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return _together(name, {path: path for path in paths})
        except _Disagreement:
            if left := _left(paths):
                with contextlib.suppress(AliasesError):
                    return _together(name, {path: left.get(path, path) for path in paths})
            if tries == _MOST_TRIES:
                raise


def _together(name: str, files: Mapping[Path, Path]) -> dict[str, int]:
    """The same, of what is read in place of each file."""
    names, folder_by = dict[str, int](), dict[str, Path]()
    for path, file in files.items():
        for alias, version in _loaded(path, _text(file)).items():
            if names.setdefault(alias, version) != version:
                raise _Disagreement(
                    f"{path}: {alias} is {version}, and {names[alias]} in {folder_by[alias]}, another folder of"
                    f" {name!r}; have both name one version (statestream alias writes all), or keep one of the files"
                )
            folder_by.setdefault(alias, path.parent)
    return names


def _left(paths: Iterable[Path]) -> dict[Path, Path]:
    """By file what is to take its place still: what whoever was killed between the renames of an edit left.

    All new files were on the disk before the first was renamed, and that decided the edit. So where no file is without
    such a one nothing was decided, and one that is older than its file is of an edit that others have overwritten.
    """
    left, decided = dict[Path, Path](), False
    for path in paths:
        try:
            real = Path(os.path.realpath(path))
            changed = real.stat().st_mtime_ns
            fresh = _fresh(real)
            known = fresh.lstat()
            if stat.S_ISREG(known.st_mode) and known.st_mtime_ns >= changed:
                left[path] = fresh
            else:
                decided = True
        except OSError:
            decided = True
    return left if decided else {}


def finish(folders: Iterable[Path]) -> None:
    """Ends an edit that was killed between its renames: the files of a model in these folders say what they were to.

    Raises:
        OSError: One cannot be written.
    """
    paths = [folder / ALIASES for folder in folders]
    if not _left(paths):
        return
    with _alone(path.parent for path in paths if path.parent.is_dir()):
        try:
            _together("", {path: path for path in paths})
        except _Disagreement:
            left = _left(paths)
            try:
                _together("", {path: left.get(path, path) for path in paths})
            except AliasesError:
                return  # It was another edit: whoever asks hears that they disagree.
            for path, fresh in left.items():
                os.replace(fresh, os.path.realpath(path))
        except AliasesError:
            return


def read(path: Path) -> dict[str, int]:
    """The versions that a file names, by alias; none where there is no file.

    Raises:
        AliasesError: It cannot be read, or says something else.
    """
    return dict(_loaded(path, _text(path)))


def _text(path: Path) -> str:
    """What a file holds, which may be more than is read of it; "" where there is none.

    Raises:
        AliasesError: It cannot be read.
    """
    try:
        # Of a pipe, or what somebody puts in its place between two looks, nothing is waited for.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            kind = os.fstat(file).st_mode
            if stat.S_ISDIR(kind):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(kind):
                raise ValueError("it is no regular file")
            with open(file, "rb", closefd=False) as whole:
                data = whole.read(_MOST_BYTES + 1)
        finally:
            os.close(file)
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except (FileNotFoundError, NotADirectoryError) as error:
        if not os.path.lexists(path):
            return ""
        raise AliasesError(f"{path}: it is a link that leads nowhere") from error
    except (OSError, ValueError) as error:
        raise AliasesError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _loaded(path: Path, text: str) -> dict[str, int]:
    """What `_loads` makes of a file's text.

    Raises:
        AliasesError: It is not made of aliases.
    """
    try:
        return _loads(text)
    except ValueError as error:
        raise AliasesError(f"{path}: {error}") from error


@functools.lru_cache(1 << 10)  # Files are read at every look: two of one size and time may differ.
def _loads(text: str) -> dict[str, int]:
    """Reads what a file holds.

    Raises:
        ValueError: It is no TOML, or has something else than aliases.
    """
    if len(text.encode()) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes; expected lines such as stable = 3")
    longest = max(map(len, text.split("\n")))
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


def edit(folders: Iterable[Path], alias: str, version: int | None) -> None:
    """Has an alias name a version in the files of folders, or takes it out: in all or, where one fails, in none.

    Their other lines stay as they are. Whoever reads a file sees it before or after, and of two who edit it one waits.

    Raises:
        AliasesError: A file there is none of aliases.
        OSError: One cannot be written.
    """
    with _alone(folders) as places:
        texts = {path: _with(path, alias, version).encode() for path in places}
        before = {path: path.read_bytes() if path.exists() else None for path in places}
        fresh, done = dict[Path, Path](), list[Path]()
        try:
            for path, text in texts.items():  # All of it is on the disk before a name changes.
                fresh[path] = _written(path, text)
            for path in places:
                os.replace(fresh[path], path)
                done.append(path)
        except BaseException:
            for path in done:
                _put_back(path, before[path])
            for path in fresh.keys() - {*done}:
                with contextlib.suppress(OSError):
                    fresh[path].unlink()
            raise
        for place in places.values():
            with contextlib.suppress(OSError):  # Not every file system can.
                os.fsync(place)


def _with(path: Path, alias: str, version: int | None) -> str:
    """What a file says once an alias names a version in it.

    Raises:
        AliasesError: It is none of aliases, or would not be read then.
    """
    text = _text(path)
    names = dict(_loaded(path, text))
    if version is None:
        names.pop(alias, None)
    else:
        names[alias] = version
    edited = _edited(text, alias, version)
    try:
        if len(edited.encode()) <= _MOST_BYTES and not _says(edited, names):
            # A key in quotes, or a line that only looks like one.
            edited = "".join(f"{_key(name)} = {number}\n" for name, number in names.items())
        _loads(edited)
    except ValueError as error:
        raise AliasesError(f"{path} would not be read with {alias} in it: {error}") from error
    return edited


def _says(text: str, names: dict[str, int]) -> bool:
    try:
        return _loads(text) == names
    except ValueError:
        return False


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
def _alone(folders: Iterable[Path]) -> Iterator[dict[Path, int]]:
    """The files of folders, each once, and where they lie, open; waits until no other process edits what lies there.

    Raises:
        OSError: One cannot be opened, or another process edits for too long.
    """
    found = dict[tuple[int, int, str], tuple[Path, int]]()
    with contextlib.ExitStack() as held:
        for folder in folders:
            folder.mkdir(exist_ok=True)
            path = Path(os.path.realpath(folder / ALIASES))  # A link stays one.
            place = os.open(path.parent, os.O_RDONLY)
            held.callback(os.close, place)
            known = os.fstat(place)
            found.setdefault((known.st_ino, known.st_dev, path.name), (path, place))
        locks = {key[:2]: place for key, (_, place) in found.items()}
        for _, place in sorted(locks.items()):  # All take them in this order, so that no two wait for each other.
            _lock(place, next(path.parent for path, one in found.values() if one == place))
        yield dict(found.values())


def _lock(place: int, folder: Path) -> None:
    """Waits until nobody else edits what lies in a folder.

    Raises:
        OSError: Somebody is at it for too long.
    """
    until = time.monotonic() + _MOST_WAITED
    while True:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise OSError(
                    errno.EWOULDBLOCK,
                    f"another process has kept it locked for {_MOST_WAITED:g} s; continue or end that one",
                    str(folder),
                ) from error
        time.sleep(_PAUSE)


def _fresh(path: Path) -> Path:
    """Where what is to take a file's place is written."""
    return path.with_name(f".{path.name}.new")


def _written(path: Path, text: bytes) -> Path:
    """Writes what is to take a file's place, beside it; whoever does so is alone.

    It has one name: whoever is killed leaves it to the next.
    """
    fresh = _fresh(path)
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    known = path.stat() if path.exists() else None
    try:
        with fresh.open("xb") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), known.st_mode & 0o777 if known is not None else 0o644)
            if known is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), known.st_uid, known.st_gid)
            os.fsync(file.fileno())
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # Of several, which disk is full.
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    return fresh


def _put_back(path: Path, text: bytes | None) -> None:
    """Has a file say what it said before, or be gone where it was not there, as far as that can be done."""
    with contextlib.suppress(OSError):
        if text is None:
            path.unlink()
        else:
            os.replace(_written(path, text), path)
