"""Where the files of a published data set are: in a folder of the user's, in the cache, or fetched into it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from rich.console import Console

from statestream_export.errors import DataError


@dataclass(frozen=True, slots=True)
class Source:
    """Where data comes from, as a run was told.

    Attributes:
        folder: A folder with the files; nothing is fetched then.
        fetch: Whether files may be fetched, and taken from the cache of earlier fetches.
        console: Where it is said which data is used.
    """

    folder: Path | None
    fetch: bool
    console: Console


@dataclass(frozen=True, slots=True)
class Published:
    """A data set as it was published.

    Attributes:
        name: What people call it.
        folder: Its folder in the cache.
        site: The address that file names are appended to.
        files: The checksum of every file, `sha256:…` or `md5:…`.
    """

    name: str
    folder: str
    site: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Found:
    """Files of a data set that are there.

    Attributes:
        paths: By the name they were published under; a file may be unpacked, without the ending .gz.
        label: What the data is, for metrics.
    """

    paths: Mapping[str, Path]
    label: str


def find(published: Published, source: Source) -> Found | None:
    """The files, or None where they are neither in the folder nor to be had.

    Interrupting a fetch leaves nothing half-written: a file gets its name once its checksum is right.

    Raises:
        DataError: The folder lacks files, or what was fetched is not what was published.
    """
    if source.folder is not None:
        found = _in_folder(published, source.folder)
    elif source.fetch:
        paths = _fetched(published, source.console)
        if paths is None:
            return None
        found = Found(paths, published.name)
    else:
        return None
    source.console.print(f"data: {found.label}, {next(iter(found.paths.values())).parent}")
    return found


def _in_folder(published: Published, folder: Path) -> Found:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; --data names one with {', '.join(published.files)}")
    paths, missing = dict[str, Path](), list[str]()
    for name in published.files:
        choices = [folder / name, folder / name.removesuffix(".gz")]
        path = next((path for path in choices if path.is_file()), None)
        if path is None:
            missing.append(name)
        else:
            paths[name] = path
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}; {published.name} is {', '.join(published.files)} (files that end in"
            f" .gz may be unpacked), from {published.site}"
        )
    label = published.name
    if any(path.name != name for name, path in paths.items()):
        # The checksums are those of the packed files.
        label += ", unpacked files that were not compared with the published ones"
    elif not all(_matches(path, published.files[name]) for name, path in paths.items()):
        label += ", other files than the published ones"
    return Found(paths, label)


def _matches(path: Path, checksum: str) -> bool:
    algorithm, _, wanted = checksum.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == wanted


def _fetched(published: Published, console: Console) -> dict[str, Path] | None:
    pooch.get_logger().setLevel(logging.WARNING)
    cache = Path(pooch.os_cache("statestream")) / published.folder
    paths = dict[str, Path]()
    for name, checksum in published.files.items():
        path = cache / name
        if not (path.is_file() and _matches(path, checksum)):
            console.print(f"fetching {published.site}{name}")
            try:
                pooch.retrieve(published.site + name, checksum, fname=name, path=cache)
            except (requests.ConnectionError, requests.Timeout, requests.HTTPError) as error:
                # The kind alone: the text is long and names the library's inner objects.
                console.print(f"{published.name} cannot be fetched: {type(error).__name__}")
                return None
            except (requests.RequestException, ValueError) as error:
                what = "ended early" if isinstance(error, requests.RequestException) else "has another checksum"
                raise DataError(
                    f"what {published.site}{name} sent is not what was published: it {what}. It was thrown away; try"
                    " again, or give the files with --data FOLDER"
                ) from error
        paths[name] = path
    return paths
