"""How long a start takes, with one model and with ten, verdicts kept or not; and that of a server of one's own.

`python -m benchmarks.start` prints it; with --docs it writes its lines of docs/models.md.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

import click
import onnx

from tests.server.models.graphs import recurrent, save
from tests.support import models

_PAGE: Final = Path(__file__).parents[1] / "docs" / "models.md"
_SERVE = "import sys; from statestream_server.cli import serve; sys.argv[0] = 'statestream serve'; serve()"
_MODELS: Final[tuple[Callable[[], onnx.ModelProto], ...]] = (
    models.lstm,
    models.gru,
    models.loop,
    models.counter,
    models.scores,
    models.tokens,
    lambda: recurrent("LSTM", hidden=64)[0],
    lambda: recurrent("GRU", hidden=64)[0],
    lambda: recurrent("RNN", hidden=32)[0],
    lambda: recurrent("LSTM", layers=2, hidden=128)[0],
)


_FLOOR: Final = "import numpy, onnxruntime, grpc; print('ready:', time.process_time())"
_OWN: Final = """
import statestream
with statestream.local(sys.argv[1]) as client:
    with client.session("m0") as session:
        session.step([0.0, 0.0, 0.0])
    stat = open(f"/proc/{client.server.pid}/stat").read().rpartition(")")[2].split()
    print("ready:", (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"), flush=True)
"""
"""A program with a server of its own, until the answer to a first step; both say what they used of a processor."""


def _program(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds from the start of a program until it says that it is ready, and those of a processor that it names."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", f"import os, sys, time\n{code}", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    ) as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        took = time.perf_counter() - began
    assert line.startswith("ready: "), "the program did not come so far"
    return took, float(line.split()[1])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}


def _start(folder: Path, *options: str) -> float:
    """Seconds from the start of the process until it says that it is ready."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(folder), "--port", "0", "--no-http", "--log-level", "error", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        took = time.perf_counter() - began
        server.terminate()
        assert line.startswith("ready: "), "the server did not start"
    return took


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, help="Starts of each kind.")
@click.option("--docs", is_flag=True, help="Writes the lines of docs/models.md.")
def main(rounds: int, docs: bool) -> None:
    """Measures starts."""
    found = dict[str, dict[int, float]]()
    with tempfile.TemporaryDirectory() as top:
        for count in (1, len(_MODELS)):
            folder = Path(top) / str(count)
            for number, make in enumerate(_MODELS[:count]):
                save(make(), folder / "models", f"m{number}.onnx")
            store = ("--store", f"sqlite:{folder / 'sessions.db'}")
            for kind, options in (("tried", (*store, "--no-proof-cache")), ("kept", store)):
                _start(folder / "models", *options)  # Python compiles, and the verdicts are kept.
                found.setdefault(kind, {})[count] = median(_start(folder / "models", *options) for _ in range(rounds))
        programs, floors = list[tuple[float, float]](), list[tuple[float, float]]()
        model = str(Path(top) / "1" / "models" / "m0.onnx")
        _program(_OWN, model)
        for _ in range(2 * rounds):
            floors.append(_program(_FLOOR))
            programs.append(_program(_OWN, model))
    few, many = 1, len(_MODELS)
    lines = [
        f"Seconds until a server answers, the median of {rounds} starts on {os.cpu_count()} processors"
        f" ({platform.machine()}, Python {platform.python_version()}):",
        "",
        f"| | {few} model | {many} models | each of them |",
        "| --- | --- | --- | --- |",
    ]
    for kind, words in (("tried", "models are tried"), ("kept", "verdicts are kept")):
        one, all_ = found[kind][few], found[kind][many]
        lines.append(f"| {words} | {one:.2f} s | {all_:.2f} s | {(all_ - one) / (many - few) * 1000:.0f} ms |")
    (own, used), (floor, least) = (
        tuple(median(each) for each in zip(*kind, strict=True)) for kind in (programs, floors)
    )
    lines += [
        "",
        f"A program with a server of its own (`statestream.local` of one model) has the answer to its first step after"
        f" {own:.2f} s (median of {len(programs)}; {used:.2f} s of a processor in the server). In between, a program"
        f" that imports NumPy, ONNX Runtime and gRPC and does nothing else took {floor:.2f} s"
        f" ({least:.2f} s of a processor).",
    ]
    text = "\n".join(lines)
    click.echo(text)
    if docs:
        page = _PAGE.read_text()
        part = re.compile(r"(<!-- start: [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
        _PAGE.write_text(part.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page))


if __name__ == "__main__":
    main()
