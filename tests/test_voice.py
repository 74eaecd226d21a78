"""docs/voice.md: its commands run, its Python prints what it shows, and its recording is what its script makes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import pages, serving, voice
from tests.support.pages import ROOT
from tests.test_readme import check, environment, outputs

PAGE = ROOT / "docs" / "voice.md"
TEST = "tests/test_voice.py::test_the_page_says_what_it_prints"


def test_every_block_is_run_or_says_that_it_is_not() -> None:
    found = pages.blocks(PAGE)
    assert len(found) > 3
    assert not [block.text for block in found if not pages.state(block, PAGE)]
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE.read_text("utf-8")):
        assert "://" in target or (PAGE.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_page_says_what_it_prints(tmp_path: Path) -> None:
    voice.source("silero_vad.onnx")
    shutil.copy(voice.RECORDING, tmp_path)
    blocks = [block for block in pages.blocks(PAGE) if pages.runner(block) == TEST]
    (commands,) = [block.text for block in blocks if block.language == "bash"]
    # It is installed: `make install` did that.
    done = subprocess.run(
        ["bash", "-euc", commands.replace("pip install silero-vad\n", "")],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "input_last → input_last_next" in done.stdout
    parts = [block for block in blocks if block.language == "python"]
    with serving.process(tmp_path / "models", "--store", "memory") as server:
        check(PAGE, parts, outputs(parts, server.address, tmp_path))


def test_the_recording_is_what_its_script_makes(tmp_path: Path) -> None:
    """Where its programs are: CI installs neither, as nothing but this needs them."""
    for program in ("espeak-ng", "sox"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    code = "import sys, pathlib; from tools.record_voice import record; record(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again.wav")], cwd=ROOT, check=True)
    made, kept = (np.frombuffer(path.read_bytes(), np.uint8) for path in (tmp_path / "again.wav", voice.RECORDING))
    # Another version of a program may say it a little quicker.
    assert len(made) == pytest.approx(len(kept), rel=0.05)
    if len(made) == len(kept):
        assert np.abs(made.astype(int) - kept).mean() < 2
    assert voice.RECORDING.stat().st_size < 100_000
