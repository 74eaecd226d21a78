"""A short measurement of a running server: throughput by batch, and how long single calls take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.errors import ModelNotFound, Unsupported
from statestream.contract.signature import TensorSpec
from statestream.sync import Client
from statestream.views import Model

_WARM_UP = 3
_BINS_AN_OCTAVE = 2


@dataclass(frozen=True, slots=True)
class Rate:
    """Throughput with batches of one size.

    Attributes:
        batch: Sessions that step together, or items of one call.
        calls: Calls that were made.
        a_second: Steps, or items, a second.
    """

    batch: int
    calls: int
    a_second: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a measurement found.

    Attributes:
        model: The model's name.
        version: Its version.
        unit: What is counted: "steps" or "items".
        rates: Throughput by size.
        trips: [n] seconds of single calls, one after the other.
    """

    model: str
    version: int
    unit: str
    rates: list[Rate]
    trips: list[float]

    def percentiles(self) -> dict[str, float]:
        """Milliseconds of a single call."""
        values = np.quantile(self.trips, [0.5, 0.9, 0.99]) * 1e3
        return dict(zip(("p50", "p90", "p99"), (round(value, 3) for value in values.tolist()), strict=True))

    def plain(self) -> dict[str, Any]:
        """The figures as JSON values."""
        rates = [asdict(rate) | {"a_second": round(rate.a_second, 1)} for rate in self.rates]
        return {
            "model": self.model,
            "version": self.version,
            "unit": self.unit,
            "rates": rates,
            "calls": len(self.trips),
            "milliseconds": self.percentiles(),
        }


def choose(models: list[Model], name: str | None) -> Model:
    """The model to measure: the one of that name, or else the first that has sessions, or else that predicts.

    Raises:
        ModelNotFound: There is none.
        Unsupported: It can only generate.
    """
    good = [model for model in models if model.is_default and not model.error and name in (None, model.name)]
    if not good:
        served = ", ".join(sorted({model.name for model in models})) or "none"
        raise ModelNotFound(f"no model {name!r} is served; served: {served}" if name else "the server serves no model")
    wanted = sorted(good, key=lambda model: ("session", "predict", "generate").index(model.kind))[0]
    if wanted.kind == "generate":
        raise Unsupported(f"model {wanted.name!r} generates; bench measures steps and predictions")
    return wanted


def measure(client: Client, model: Model, *, most: int, steps: int, seconds: float) -> Found:
    """Measures one model; the sessions it opens are deleted again.

    Args:
        client: A client of the server.
        model: The model.
        most: The largest batch.
        steps: Steps of a session in one call; predictions have none.
        seconds: How long each size is measured.

    Raises:
        StatestreamError: The server refused something, for instance so many sessions.
    """
    rates = list[Rate]()
    for batch in sizes(most):
        with _caller(client, model, batch, steps) as call:
            trips = _repeat(call, seconds)
        rates.append(Rate(batch, len(trips), batch * steps_of(model, steps) * len(trips) / sum(trips)))
    with _caller(client, model, 1, 1) as call:
        trips = _repeat(call, seconds)
    return Found(model.name, model.version, "steps" if model.kind == "session" else "items", rates, trips)


def steps_of(model: Model, steps: int) -> int:
    """Steps that one call counts for an item of its batch."""
    return steps if model.kind == "session" else 1


def sizes(most: int) -> list[int]:
    """Powers of four up to `most`, and `most` itself."""
    powers = [4**power for power in range(int(math.log2(most)) // 2 + 1)]
    return sorted({*powers, most})


@contextmanager
def _caller(client: Client, model: Model, batch: int, steps: int) -> Iterator[Callable[[], object]]:
    """A call of one size; its sessions are open meanwhile."""
    x = inputs(model, batch, steps)
    if model.kind != "session":
        yield lambda: client.predict(model.name, x)
        return
    with client.sessions(model.name, batch) as pool:
        yield lambda: pool.step(x)


def inputs(model: Model, batch: int, steps: int) -> Mapping[str, np.ndarray]:
    """Inputs that the model takes: small random numbers, zeros for other types; free lengths are 1."""
    random = np.random.default_rng(0)
    found = {}
    for spec in model.signature.inputs:
        shape = _shape(spec, batch, steps if model.kind == "session" else 1, sessions=model.kind == "session")
        dtype = signatures.numpy_dtype(spec.dtype)
        if np.issubdtype(dtype, np.floating):
            found[spec.name] = random.normal(size=shape).astype(dtype)
        elif dtype.kind in "OSU":
            found[spec.name] = np.full(shape, "", object)
        else:
            found[spec.name] = np.zeros(shape, dtype)
    return found


def _shape(spec: TensorSpec, batch: int, steps: int, *, sessions: bool) -> tuple[int, ...]:
    if sessions:
        # Of a single step the time axis is left out.
        step = tuple(max(1, size) for size in signatures.step_shape(spec))
        return (batch, *([steps] if steps > 1 else []), *step)
    axis = spec.batch_axis if spec.HasField("batch_axis") else None
    return tuple(batch if place == axis else max(1, size) for place, size in enumerate(spec.shape))


def _repeat(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, in closed loop."""
    for _ in range(_WARM_UP):
        call()
    trips, end = list[float](), time.perf_counter() + seconds
    while not trips or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        trips.append(time.perf_counter() - start)
    return trips


def histogram(trips: list[float]) -> list[tuple[float, int]]:
    """Counts by the lower ends of bins whose width grows with them; empty ones between others too."""
    places = np.floor(np.log2(trips) * _BINS_AN_OCTAVE).astype(np.int64)
    first = int(places.min())
    counts = np.bincount(places - first)
    return [(2.0 ** ((first + i) / _BINS_AN_OCTAVE), count) for i, count in enumerate(counts.tolist())]
