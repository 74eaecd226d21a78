"""The model: a register of whole numbers that each step shifts by one, so that an output tells the session's history.

y = s' = (x, s[0], s[1], …): the newest step first. Its bits are exact, in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from statestream.contract.signature import Signature, StateSpec, TensorSpec
from statestream_server.models.files import modelfile
from statestream_server.models.graphs import runtime
from statestream_server.models.graphs.runtime import Graph
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.model import Kind, Model
from tests.server.models.graphs import Builder, save

MODEL = "register"
WIDTH = 64
"""Steps that a state remembers; schedules are shorter."""


def graph() -> onnx.ModelProto:
    """The model's file."""
    b = Builder()
    shape = [-1, WIDTH]
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="int64", shape=[-1, 1], batch_axis=0)],
        outputs=[TensorSpec(name="y", dtype="int64", shape=shape, batch_axis=0)],
        states=[StateSpec(input="s", output="s_out", dtype="int64", shape=shape, batch_axis=0)],
    )
    ends = [b.constant(np.asarray([end], np.int64)) for end in (0, WIDTH - 1, 1)]
    b.add("Concat", ["x", b.add("Slice", ["s", *ends])], ["y"], axis=1)
    b.add("Identity", ["y"], ["s_out"])
    return b.model(signature)


def write(folder: Path) -> Path:
    """Writes it into a models folder."""
    save(graph(), folder / MODEL / "1")
    return folder


def load(name: str, version: int, folder: Path, **_: Any) -> Model:
    """Loads it without the trial, in a process that has loaded it before at no cost."""
    session, signature, digest = _loaded(folder)
    rows = NumpyRows(session, signature, check_inputs=False)
    return Model(name, version, Kind.SESSION, signature, digest, rows=rows, providers=("CPUExecutionProvider",))


@cache
def _loaded(folder: Path) -> tuple[Graph, Signature, str]:
    file = modelfile.read(folder / "model.onnx")
    names = [spec.name for spec in file.signature.inputs], [spec.name for spec in file.signature.outputs]
    session = Graph(file.path, runtime.providers_for("cpu", 1), inputs=names[0], outputs=names[1], folder=folder)
    return session, file.signature, file.digest()


def history(output: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    """The steps that an output tells, the oldest first; a start value counts as one."""
    return tuple(int(number) for number in np.asarray(output).ravel()[::-1] if number)


def start(mark: int) -> dict[str, np.ndarray]:
    """Start values with a mark, as the step before the first."""
    values = np.zeros(WIDTH, np.int64)
    values[0] = mark
    return {"s": values}
