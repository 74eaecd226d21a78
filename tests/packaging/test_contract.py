"""The contract: all that server and exporter import of the client; it stands on nothing of it and waits for no gRPC."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = ROOT / "client/src/statestream/contract"


def modules_of_client(path: Path) -> set[str]:
    """What a file imports of the client, anywhere in it."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "statestream"}


def beyond(path: Path) -> list[str]:
    """What a file imports of the client beside the contract and the stubs."""
    return sorted(
        name for name in modules_of_client(path) if not name.startswith(("statestream.contract.", "statestream.v1."))
    )


@pytest.mark.parametrize("package", ["server/src/statestream_server", "export/src/statestream_export"])
def test_server_and_exporter_import_the_contract_alone(package: str) -> None:
    paths = list((ROOT / package).rglob("*.py"))
    assert paths
    assert not {str(path.relative_to(ROOT)): names for path in paths if (names := beyond(path))}


def test_the_contract_imports_nothing_of_the_client() -> None:
    paths = list(CONTRACT.rglob("*.py"))
    assert paths
    assert not {path.name: names for path in paths if (names := beyond(path))}


def test_the_contract_waits_for_no_grpc() -> None:
    names = ["statestream.contract", *(f"statestream.contract.{path.stem}" for path in CONTRACT.glob("[!_]*.py"))]
    assert len(names) > 3
    script = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        "print(sorted({'grpc', 'grpc_status', 'click', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
