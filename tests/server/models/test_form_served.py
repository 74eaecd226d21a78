"""Files without a signature, served: streamed outputs are those of a loop that keeps the state by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import statestream
from statestream_server.arrays import Array
from tests.server.models.form_zoo import CASES, Case
from tests.support import serving

_SESSIONS, _STEPS = 32, 5


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = _written(tmp_path_factory.mktemp("zoo"), CASES)
    with serving.process(folder, "--store", "memory") as server, statestream.connect(server.address) as client:
        yield client


def _written(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        case, place = CASES[name](), folder / _slug(name) / "1"
        place.mkdir(parents=True)
        onnx.save(case.model, place / "model.onnx")
        if case.told:
            (place / "model.toml").write_text(case.told)
    return folder


def _slug(name: str) -> str:
    return "-".join(name.replace(",", "").split())


def _drawn(case: Case, count: int) -> dict[str, Array]:
    """Steps of so many sessions: [count, steps, *step shape]."""
    rng = np.random.default_rng(5)
    kinds = {value.name: value.type.tensor_type.elem_type for value in case.model.graph.input}
    drawn = {}
    for name, shape in case.inputs.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kinds[name])
        values = rng.standard_normal((count, _STEPS, *shape)) * (5 if dtype.kind == "i" else 1)
        drawn[name] = np.asarray(values.round() if name == "starts" else values).astype(dtype)
    return drawn


def _flat(answer: Mapping[str, Array] | Array) -> Array:
    """All outputs of one step, in the order of their names."""
    values = [answer[name] for name in sorted(answer)] if isinstance(answer, Mapping) else [answer]
    return np.concatenate([np.asarray(value).reshape(-1) for value in values])


def _wanted(case: Case, drawn: Mapping[str, Array], row: int) -> Array:
    return np.stack(case.loop([{name: value[row, step] for name, value in drawn.items()} for step in range(_STEPS)]))


def _sent(values: dict[str, Array]) -> Any:
    return values if len(values) > 1 else next(iter(values.values()))


@pytest.mark.parametrize("name", CASES)
def test_a_session_streams_what_a_loop_by_hand_gives(client: Any, name: str) -> None:
    case = CASES[name]()
    drawn = _drawn(case, 1)
    with client.session(_slug(name)) as session:
        found = [
            _flat(session.step(_sent({key: value[0, step] for key, value in drawn.items()}))) for step in range(_STEPS)
        ]
    np.testing.assert_allclose(np.stack(found), _wanted(case, drawn, 0), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_so_do_32_sessions_at_once(client: Any, name: str) -> None:
    case = CASES[name]()
    drawn = _drawn(case, _SESSIONS)
    with client.sessions(_slug(name), _SESSIONS) as pool:
        answers = [pool.step(_sent({key: value[:, step] for key, value in drawn.items()})) for step in range(_STEPS)]
    for row in range(_SESSIONS):
        found = [
            _flat({key: value[row] for key, value in answer.items()} if isinstance(answer, dict) else answer[row])
            for answer in answers
        ]
        np.testing.assert_allclose(np.stack(found), _wanted(case, drawn, row), rtol=2e-3, atol=1e-5)


def test_a_session_is_opened_with_its_own_constant(client: Any) -> None:
    case = CASES["a rate of each session"]()
    drawn = _drawn(case, 1)
    start = {"sr": np.asarray(8000), "state": np.zeros((2, 8)), "input_last": np.zeros(4)}
    with client.session("a-rate-of-each-session", initial_state=start) as session:
        found = [_flat(session.step(drawn["input"][0, step])) for step in range(_STEPS)]
    slower = Case(case.model, case.states, case.inputs, fixed={"sr": 8000}, window=case.window)
    np.testing.assert_allclose(np.stack(found), _wanted(slower, drawn, 0), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_runs_are_shared_where_the_file_allows(client: Any, name: str) -> None:
    (model,) = (each for each in client.models() if each.name == _slug(name))
    batched = all(spec.HasField("batch_axis") and spec.shape[spec.batch_axis] < 0 for spec in model.signature.states)
    assert batched == CASES[name]().batched


def test_a_kill_between_steps_loses_nothing(tmp_path: Path) -> None:
    names = ("silero", "a rate of each session", "zipformer", "half precision", "wenet")
    folder, store = _written(tmp_path / "models", names), f"sqlite:{tmp_path / 'sessions.db'}"
    found: dict[str, list[Array]] = {name: [] for name in names}
    drawn = {name: _drawn(CASES[name](), 1) for name in names}
    for steps in (range(2), range(2, _STEPS)):
        with (
            serving.process(folder, "--store", store, "--durability", "sync") as server,
            statestream.connect(server.address) as client,
        ):
            for name in names:
                session = client.session(_slug(name), id="a")
                for step in steps:
                    sent = {key: value[0, step] for key, value in drawn[name].items()}
                    found[name].append(_flat(session.step(_sent(sent))))
            server.kill()
    for name in names:
        expected = _wanted(CASES[name](), drawn[name], 0)
        np.testing.assert_allclose(np.stack(found[name]), expected, rtol=2e-3, atol=1e-5)
