"""What a type checker says of a user's script: it refuses what the client would, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT

SCRIPT = Path(__file__).with_name("typed.py")


@pytest.mark.slow
def test_a_type_checker_refuses_what_the_client_would(tmp_path: Path) -> None:
    copy = tmp_path / "script.py"
    copy.write_text(SCRIPT.read_text("utf-8"), "utf-8")
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--config-file=",
            f"--cache-dir={tmp_path}",
            copy.name,
        ],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "client" / "src")},
        capture_output=True,
        text=True,
        timeout=110,
    )
    told: dict[int, str] = {}
    for number, message in re.findall(r"^script\.py:(\d+): error: (.*)$", found.stdout, re.MULTILINE):
        told[int(number)] = told.get(int(number), "") + message
    expected = {
        number: line.partition("# refused: ")[2]
        for number, line in enumerate(copy.read_text("utf-8").splitlines(), 1)
        if "# refused: " in line
    }
    assert told.keys() == expected.keys(), found.stdout + found.stderr
    for number, words in expected.items():
        assert words in told[number]
