"""Generates the Python stubs of protos/, or checks that the committed ones are fresh.

    python tools/stubs.py           writes client/src/statestream/v1 and server/src/statestream_server/edges/oip
    python tools/stubs.py --check   compares, changes nothing, exits 1 where they differ

Run it in `.venv`: constraints.txt pins the generator, so that the same protos give the same bytes.
"""

from __future__ import annotations

import argparse
import importlib.resources
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROTOS: Final = ROOT / "protos"
PACKAGES: Final = {
    Path("statestream", "v1"): ROOT / "client" / "src",
    Path("statestream_server", "edges", "oip"): ROOT / "server" / "src",
}
"""Where each package's stubs lie."""


def ours() -> list[Path]:
    """The protos of the packages above."""
    return sorted(path for package in PACKAGES for path in (PROTOS / package).glob("*.proto"))


def protoc(*arguments: str) -> None:
    """Runs protoc over every proto of ours; google/rpc lies beside them, its stubs are googleapis-common-protos'."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    includes = (str(PROTOS), str(well_known))
    files = [str(path.relative_to(PROTOS)) for path in ours()]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"--proto_path={path}" for path in includes)]
    subprocess.run([*command, *arguments, *files], check=True)


def generate(folder: Path) -> None:
    """Writes the stubs of all protos under a folder; modules of services only where there are services of our own."""
    protoc(f"--python_out={folder}", f"--pyi_out={folder}", f"--grpc_python_out={folder}")
    for proto in ours():
        lines = proto.read_text(encoding="utf-8").splitlines()
        if proto.parent.name != "v1" or not any(line.startswith("service ") for line in lines):
            (folder / proto.relative_to(PROTOS)).with_name(f"{proto.stem}_pb2_grpc.py").unlink()


def stubs(folder: Path, package: Path) -> dict[Path, bytes]:
    """The generated files of a package, by their path below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in (folder / package).glob("*_pb2*.py*")}


def main() -> int:
    """Generates or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description="Generates or checks the stubs of protos/.")
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs, change nothing")
    checking = parser.parse_args().check
    with tempfile.TemporaryDirectory() as name:
        fresh_folder = Path(name)
        generate(fresh_folder)
        fresh = {file: data for package in PACKAGES for file, data in stubs(fresh_folder, package).items()}
    present = {file: data for package, folder in PACKAGES.items() for file, data in stubs(folder, package).items()}
    differing = sorted(file for file in fresh.keys() | present.keys() if fresh.get(file) != present.get(file))
    if checking:
        if differing:
            names = ", ".join(map(str, differing))
            print(f"stubs: not what protos/ gives: {names}; run `make stubs`", file=sys.stderr)
        else:
            print(f"stubs: {len(fresh)} files are fresh")
        return 1 if differing else 0
    for file in differing:
        path = PACKAGES[file.parent] / file
        if file in fresh:
            path.write_bytes(fresh[file])
        else:
            path.unlink()
        print(f"stubs: {'wrote' if file in fresh else 'removed'} {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
