"""Lints protos/ with buf, by the rules of buf.yaml.

buf comes from its npm package, installed under .tools in the version named here. It gets an image
that protoc built from protos/ alone: no module of a remote registry is fetched.

Where there is no npm this fails, unless STATESTREAM_SKIP_BUF=1 says that the protos go unlinted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from stubs import ROOT, protoc

VERSION: Final = "1.75.0"
FOLDER: Final = ROOT / ".tools" / f"buf-{VERSION}"


def install() -> Path:
    """Installs buf where it is missing; returns the program."""
    program = FOLDER / "node_modules" / ".bin" / "buf"
    stamp = FOLDER / ".installed"
    if not stamp.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        options = ["--no-save", "--no-package-lock", "--ignore-scripts", "--no-fund", "--no-audit", "--loglevel=error"]
        command = ["npm", "install", "--prefix", str(FOLDER), *options, f"@bufbuild/buf@{VERSION}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        stamp.touch()
    return program


def main() -> int:
    """Lints; returns the exit status."""
    if os.environ.get("STATESTREAM_SKIP_BUF") == "1":
        print("buf: skipped, STATESTREAM_SKIP_BUF=1 says so")
        return 0
    if shutil.which("npm") is None:
        print(
            "buf: the protos cannot be linted, because buf is installed with npm and there is no npm.\n"
            "Install Node.js, or leave this check to CI: STATESTREAM_SKIP_BUF=1 make check",
            file=sys.stderr,
        )
        return 1
    buf = install()
    with tempfile.TemporaryDirectory() as name:
        image = Path(name, "statestream.binpb")
        protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
        linted = subprocess.run([buf, "lint", image, "--config", ROOT / "buf.yaml", "--path", "statestream"])
    if linted.returncode == 0:
        print("buf: the protos are clean")
    return linted.returncode


if __name__ == "__main__":
    sys.exit(main())
