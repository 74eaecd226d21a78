"""Folders of JavaScript with the packages that their package.json names, installed where they are not."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path
from typing import Final

from tests import services

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "node"
_OPTIONS: Final = ("--no-package-lock", "--ignore-scripts", "--no-fund", "--no-audit", "--loglevel=error")


def installed(folder: Path = EXAMPLE) -> Path:
    """A folder with a package.json, ready to run; the test skips, or fails in CI, where there is no npm."""
    services.require_binary("node")
    services.require_binary("npm")
    wanted = (folder / "package.json").read_text("utf-8")
    modules = folder / "node_modules"
    modules.mkdir(exist_ok=True)
    stamp = modules / ".statestream-installed"
    with (modules / ".statestream-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Tests run in two processes.
        if not stamp.exists() or stamp.read_text("utf-8") != wanted:
            done = subprocess.run(
                ["npm", "install", *_OPTIONS], cwd=folder, capture_output=True, text=True, timeout=110, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            stamp.write_text(wanted, "utf-8")
    return folder
