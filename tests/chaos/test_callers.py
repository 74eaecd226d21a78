"""A caller that is killed and started again goes on by its session's id."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.cluster import Cluster, cluster
from tests.chaos.figures import report
from tests.chaos.oracle import OUTPUTS, Oracle

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
Scaled = Callable[[int, int], int]
_ROOT = Path(__file__).parents[2]


async def _crash_and_go_on(
    made: Cluster, file: Path, seed: int, number: int, steps: int, mode: str, crashes: int, *, servers: bool = False
) -> int:
    """Runs the caller, killing it at random times, until it has all outputs; how often it was killed."""
    draw, killed = random.Random(f"{seed}/{number}/{mode}"), 0
    arguments = [made.addresses[0], f"{mode}-{number}", str(seed), str(number), str(file), str(steps), mode]
    while True:
        with (file.parent / f"{file.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.crasher", *arguments], cwd=_ROOT, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
            )  # fmt: skip
        wanted = _size(file) + draw.randrange(1, 2 * steps // (crashes + 1)) if killed < crashes else steps + 1
        try:
            async with asyncio.timeout(60):
                while process.poll() is None and _size(file) < wanted:  # noqa: ASYNC110 — another process writes
                    await asyncio.sleep(0.001)
            if process.poll() is None:
                process.kill()
                process.wait()
                killed += 1
                if servers and draw.random() < 0.5:
                    await made.replicas[0].kill()
                    await made.replicas[0].start()
                continue
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, (file.parent / f"{file.name}.log").read_text()
        return killed


def _size(file: Path) -> int:
    return file.stat().st_size // (OUTPUTS * 4) if file.exists() else 0


def _read(file: Path) -> np.ndarray:
    return np.fromfile(file, np.float32).reshape(-1, OUTPUTS)


async def test_a_caller_gets_the_replies_that_it_had_not_acknowledged(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled
) -> None:
    """It is killed at random, now and then with the server: its file ends up with every output, once."""
    steps, crashes = scaled(8000, 1600) // 4 * 4, scaled(20, 4)
    async with cluster(models, tmp_path, "--durability", "sync") as made:
        file = tmp_path / "replies"
        killed = await _crash_and_go_on(made, file, seed, 0, steps, "replies", crashes, servers=True)
        got = _read(file)
        assert got.tobytes() == oracle.outputs(0, steps).tobytes()
        report(
            "chaos-callers", {"seed": seed, "crashes": killed, "outputs_checked": len(got), "lost": 0, "repeated": 0}
        )
        assert killed > 0


async def test_the_public_client_brings_what_nobody_acknowledged(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled
) -> None:
    """What was handed over and never written down is missed, and known; no step is lost or applied twice."""
    steps, crashes = scaled(8000, 1600) // 4 * 4, scaled(10, 2)
    async with cluster(models, tmp_path) as made:
        file = tmp_path / "client"
        killed = await _crash_and_go_on(made, file, seed, 0, steps, "client", crashes)
        got, wanted = _read(file), oracle.outputs(0, steps)
        missed = np.isnan(got).any(axis=1)
        assert got[~missed].tobytes() == wanted[~missed].tobytes()
        named = Path(f"{file}.gaps")
        gaps = [line.split() for line in named.read_text().splitlines()] if named.exists() else []
        assert missed.sum() < steps // 10
        assert sum(int(end) - int(start) for start, end in gaps) == missed.sum()
        assert killed > 0
