"""Raw ONNX Runtime in this process, one thread: the ceiling."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime


def open_graph(path: str) -> Any:
    """A session with the options that suit small models: one thread, no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def start_states(graph: Any, batch: int) -> dict[str, np.ndarray]:
    """Zeros for every state of a graph whose states are [layers, batch, hidden]."""
    shapes = {port.name: port.shape for port in graph.get_inputs() if port.name != "x"}
    return {name: np.zeros((shape[0], batch, shape[2]), np.float32) for name, shape in shapes.items()}


def steps_per_second(path: str, batch: int, steps: int, features: int, seconds: float) -> float:
    """Steps a second of a stateful graph, its states carried from run to run."""
    graph = open_graph(path)
    x = np.random.default_rng(0).normal(size=(batch, steps, features)).astype(np.float32)
    states, runs = start_states(graph, batch), 0
    names = list(states)
    for _ in range(3):
        graph.run(None, {"x": x, **states})
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        _, *new = graph.run(None, {"x": x, **states})
        states = dict(zip(names, new, strict=True))
        runs += 1
    return runs * batch * steps / passed


def calls_per_second(path: str, x: np.ndarray, seconds: float) -> float:
    """Items a second of a graph without memory."""
    graph, runs = open_graph(path), 0
    name = graph.get_inputs()[0].name
    graph.run(None, {name: x})
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        graph.run(None, {name: x})
        runs += 1
    return runs * len(x) / passed
