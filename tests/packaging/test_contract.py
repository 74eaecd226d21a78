"""The contract waits for no gRPC. Who may import it, and what it may import, is held by `make check-layers`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONTRACT = Path(__file__).resolve().parents[2] / "client/src/statestream/contract"


def test_the_contract_waits_for_no_grpc() -> None:
    names = ["statestream.contract", *(f"statestream.contract.{path.stem}" for path in CONTRACT.glob("[!_]*.py"))]
    assert len(names) > 3
    script = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        "print(sorted({'grpc', 'grpc_status', 'click', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
