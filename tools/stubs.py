"""Generates the Python stubs of `statestream.v1` from protos/, or checks that the committed ones are fresh.

    python tools/stubs.py           writes client/src/statestream/v1
    python tools/stubs.py --check   compares, changes nothing, exits 1 where they differ

Run it in `.venv`: constraints.txt pins the generator, so that the same protos give the same bytes.
"""

from __future__ import annotations

import argparse
import importlib.resources
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROTOS: Final = ROOT / "protos"
STUBS: Final = ROOT / "client" / "src"
PACKAGE: Final = Path("statestream", "v1")


def protoc(*arguments: str) -> None:
    """Runs protoc over every proto of the package; google/rpc comes from googleapis-common-protos."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    includes = (str(PROTOS), sysconfig.get_path("purelib"), str(well_known))
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"--proto_path={path}" for path in includes)]
    subprocess.run([*command, *arguments, *files], check=True)


def generate(folder: Path) -> None:
    """Writes the stubs of all protos under a folder; modules of services only where there are services."""
    protoc(f"--python_out={folder}", f"--pyi_out={folder}", f"--grpc_python_out={folder}")
    for proto in PROTOS.rglob("*.proto"):
        if not any(line.startswith("service ") for line in proto.read_text(encoding="utf-8").splitlines()):
            (folder / proto.relative_to(PROTOS)).with_name(f"{proto.stem}_pb2_grpc.py").unlink()


def stubs(folder: Path) -> dict[str, bytes]:
    """The generated files of a folder, by name."""
    return {path.name: path.read_bytes() for path in (folder / PACKAGE).glob("*_pb2*.py*")}


def main() -> int:
    """Generates or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description="Generates or checks the stubs of statestream.v1.")
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs, change nothing")
    checking = parser.parse_args().check
    with tempfile.TemporaryDirectory() as name:
        fresh_folder = Path(name)
        generate(fresh_folder)
        fresh, present = stubs(fresh_folder), stubs(STUBS)
    differing = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
    if checking:
        if differing:
            print(f"stubs: not what protos/ gives: {', '.join(differing)}; run `make stubs`", file=sys.stderr)
        else:
            print(f"stubs: {len(fresh)} files are fresh")
        return 1 if differing else 0
    for file in differing:
        path = STUBS / PACKAGE / file
        if file in fresh:
            path.write_bytes(fresh[file])
        else:
            path.unlink()
        print(f"stubs: {'wrote' if file in fresh else 'removed'} {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
