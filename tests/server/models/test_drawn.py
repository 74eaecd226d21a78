"""Small recurrent graphs by chance are served right or refused with what settles it: never served wrong.

What is right is a loop over ONNX Runtime on the same file, which keeps the states that the graph was built with.
"""

from __future__ import annotations

import collections
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, note, settings

import statestream
from statestream import signature as signatures
from statestream.errors import StatestreamError
from statestream_server.arrays import Array
from tests.server.models.drawn import Drawn, Spec, specs
from tests.server.models.drawn_graphs import drawn
from tests.support import serving

_SESSIONS, _STEPS = 3, 4
_MANY: Final = 800
_ROUNDED: Final = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-9}


class Served:
    """A server to which graphs are given one by one."""

    def __init__(self, folder: Path, client: Any) -> None:
        self._folder, self._client, self._numbers = folder, client, itertools.count()
        self.seen = collections.Counter[str]()

    def check(self, spec: Spec) -> None:
        """Lets the server serve a graph, with what settles it where it asks, and compares all that it answers."""
        made, name = drawn(spec), f"m{next(self._numbers)}"
        folder = self._folder / name
        folder.mkdir()
        onnx.save(made.model, folder / "model.onnx")
        try:
            said = self._load(name)
            if said is None:
                self.seen["served"] += 1
            elif "may be memory" in said:
                self.seen["asked"] += 1
                assert any(state.old in said for state in made.states) or not made.states, said
                lines = [f'"{state.old}" = "{state.new}"' for state in made.states]
                told = f"states = {{ {', '.join(lines)} }}\n" if lines else "stateless = true\n"
                (folder / "model.toml").write_text(told)
                note(f"asked: {said}")
                said = self._load(name)
                self.seen["served once told" if said is None else "refused once told"] += 1
            else:
                self.seen["refused"] += 1
            if said is not None:
                note(f"refused: {said}")
                self.seen[" ".join(said.split(": ", 2)[-1].split()[:9])] += 1
                assert "\n" not in said
                return
            self._compare(made, spec, name)
        finally:
            self._client.unload_model(name) if said is None else None
            shutil.rmtree(folder)

    def _load(self, name: str) -> str | None:
        """None, or why it is not served."""
        try:
            self._client.load_model(name)
        except StatestreamError as error:
            return str(error)
        return None

    def _compare(self, made: Drawn, spec: Spec, name: str) -> None:
        (model,) = (each for each in self._client.models() if each.name == name)
        note(f"served as {model.signature}")
        if not made.states:
            self._compare_call(made, spec, name, model)
            return
        assert model.kind == "session", "it is served without its memory"
        assert {each.name for each in model.signature.inputs} == set(made.inputs)
        rng, steps = np.random.default_rng(spec.seed), [dict[str, Array]() for _ in range(_STEPS)]
        for step in steps:
            for key, (shape, _) in made.inputs.items():
                step[key] = rng.standard_normal((_SESSIONS, *shape)).astype(spec.dtype)
        wanted = [made.loop([{key: value[row] for key, value in step.items()} for step in steps])
                  for row in range(_SESSIONS)]  # fmt: skip
        sizes = {each.name: signatures.step_shape(each) for each in model.signature.inputs}
        with self._client.sessions(name, _SESSIONS) as pool:
            for place, step in enumerate(steps):
                sent = {key: value.reshape(_SESSIONS, *sizes[key]) for key, value in step.items()}
                for row, answer in _each(pool.step(_sent(sent)), model):
                    _same(answer, wanted[row][: place + 1], spec)
        if all(each.HasField("time_axis") for each in (*model.signature.inputs, *model.signature.outputs)):
            whole = {key: np.stack([step[key] for step in steps], 1) for key in steps[0]}
            sent = {key: value.reshape(_SESSIONS, _STEPS, *sizes[key]) for key, value in whole.items()}
            with self._client.sessions(name, _SESSIONS) as pool:
                for row, answer in _each(pool.step(_sent(sent)), model):
                    for place in range(_STEPS):
                        _same({key: value[place] for key, value in answer.items()}, wanted[row][: place + 1], spec)

    def _compare_call(self, made: Drawn, spec: Spec, name: str, model: Any) -> None:
        assert model.kind == "predict", "it is taken for what has a memory"
        rng = np.random.default_rng(spec.seed)
        sent = {key: rng.standard_normal(shape).astype(spec.dtype) for key, shape in made.calls.items()}
        answer = self._client.predict(name, _sent(sent))
        _same(
            answer if isinstance(answer, Mapping) else {model.signature.outputs[0].name: answer},
            [made.call(sent)],
            spec,
        )


def _each(answer: Any, model: Any) -> Iterator[tuple[int, dict[str, Array]]]:
    """The answers of sessions, by name."""
    values = answer if isinstance(answer, Mapping) else {model.signature.outputs[0].name: answer}
    for row in range(_SESSIONS):
        yield row, {key: np.asarray(value[row]) for key, value in values.items()}


def _sent(values: dict[str, Array]) -> Any:
    return values if len(values) > 1 else next(iter(values.values()))


def _same(found: Mapping[str, Array], history: Sequence[Mapping[str, Array]], spec: Spec) -> None:
    """Compares an answer with the last of those that a loop told, states too.

    An output can be a small difference of states that have grown large: rounding goes by the largest so far.
    """
    assert found
    wanted = history[-1]
    numbers = [value for told in history for value in told.values() if value.dtype.kind == "f" and value.size]
    largest = max([1.0, *(float(np.abs(value[np.isfinite(value)]).max(initial=0)) for value in numbers)])
    for name, value in found.items():
        assert value.dtype == wanted[name].dtype
        rounded = _ROUNDED.get(value.dtype.name, 0.0)
        if value.dtype.kind == "f" and spec.dtype == "float16":
            rounded = _ROUNDED["float16"]
        np.testing.assert_allclose(value.reshape(-1), wanted[name].reshape(-1), rtol=rounded, atol=rounded * largest)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("drawn")
    options = ("--store", "memory", "--no-watch", "--no-proof-cache", "--allow-empty")
    with serving.process(folder, *options) as server, statestream.connect(server.address) as client:
        yield Served(folder, client)


def _settings(count: int, *, fixed: bool) -> Any:
    return settings(
        max_examples=count, deadline=None, derandomize=fixed, database=None, suppress_health_check=list(HealthCheck)
    )


@_settings(12, fixed=True)
@given(spec=specs())
def test_graphs_by_chance_are_served_right_or_refused(served: Served, spec: Spec) -> None:
    served.check(spec)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_so_are_many(served: Served) -> None:
    """As many as DRAWN says, new ones each time where it says so; else the same 600 each time."""

    @_settings(int(os.environ.get("DRAWN", "600")), fixed="DRAWN" not in os.environ)
    @given(spec=specs())
    def check(spec: Spec) -> None:
        served.check(spec)

    served.seen.clear()
    check()
    print(served.seen)
    total = served.seen["served"] + served.seen["asked"] + served.seen["refused"]
    assert served.seen["served"] + served.seen["served once told"] > total / 2
