"""Files without a signature, served: streamed outputs are those of a loop that keeps the state by hand.

One server has all of them. It is killed between two steps: sessions by themselves and 32 beside each other go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import statestream
from statestream_server.arrays import Array
from tests.server.models.form_zoo import CASES, Case
from tests.server.models.form_zoo_chains import CHAINS
from tests.server.models.form_zoo_edges import EDGES
from tests.server.models.form_zoo_field import FIELD
from tests.server.models.form_zoo_frameworks import FRAMEWORKS
from tests.server.models.form_zoo_freed import FREED
from tests.server.models.form_zoo_windows import WINDOWS
from tests.support import serving

_SESSIONS, _STEPS, _KILLED = 32, 5, 3
ZOO = {**CASES, **FIELD, **EDGES, **CHAINS, **WINDOWS, **FREED, **FRAMEWORKS}


@dataclass
class Streamed:
    """What one file answered.

    Attributes:
        model: The model, as the server describes it.
        alone: The outputs of a session that streams alone [steps, …].
        among: The same of 32 sessions at once [sessions, steps, …].
        error: What went wrong instead.
    """

    model: Any = None
    alone: list[Array] = field(default_factory=list)
    among: list[list[Array]] = field(default_factory=lambda: [[] for _ in range(_SESSIONS)])
    error: BaseException | None = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Process]:
    folder = tmp_path_factory.mktemp("zoo")
    models = _written(folder / "models", ZOO)
    with serving.process(models, "--store", f"sqlite:{folder / 'sessions.db'}") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: serving.Process) -> Iterator[Any]:
    with statestream.connect(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def streamed(server: serving.Process, client: Any) -> dict[str, Streamed]:
    """All files, streamed over a kill: half of what was answered before is durable, the rest is replayed."""
    found = {name: Streamed() for name in ZOO}
    models = {model.name: model for model in client.models()}

    def each(do: Callable[[str, Streamed], None]) -> None:
        for name, one in found.items():
            try:
                if one.error is None:
                    do(name, one)
            except Exception as error:
                one.error = error

    with contextlib.ExitStack() as stack:
        opened: dict[str, tuple[Any, Any]] = {}

        def start(name: str, one: Streamed) -> None:
            one.model = models[_slug(name)]
            opened[name] = (
                stack.enter_context(client.session(_slug(name), id="alone")),
                stack.enter_context(
                    client.sessions(_slug(name), _SESSIONS, ids=[f"{row}" for row in range(_SESSIONS)])
                ),
            )
            steps(name, one, range(1))
            for session in opened[name]:
                session.flush()
            steps(name, one, range(1, _KILLED))

        def steps(name: str, one: Streamed, numbers: Iterable[int]) -> None:
            drawn, (session, pool) = _drawn(ZOO[name](), _SESSIONS), opened[name]
            for step in numbers:
                sent = {key: value[:, step] for key, value in drawn.items()}
                one.alone.append(_flat(session.step(_sent({key: value[0] for key, value in sent.items()}))))
                for row, answer in enumerate(_rows(pool.step(_sent(sent)))):
                    one.among[row].append(_flat(answer))

        each(start)
        server.kill()
        server.start()
        each(lambda name, one: steps(name, one, range(_KILLED, _STEPS)))
    return found


def _written(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        case, place = ZOO[name](), folder / _slug(name) / "1"
        place.mkdir(parents=True)
        for file, proto in case.files.items():
            onnx.save(proto, place / file)
        if case.told:
            (place / "model.toml").write_text(case.told)
    return folder


def _slug(name: str) -> str:
    return "-".join(name.replace(",", "").split())


def _drawn(case: Case, count: int) -> dict[str, Array]:
    """Steps of so many sessions: [count, steps, *step shape]."""
    rng = np.random.default_rng(5)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (case.by_hand or case.model).graph.input}
    drawn = {}
    for name, shape in case.inputs.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kinds[name])
        values = rng.standard_normal((count, _STEPS, *shape)) * (5 if dtype.kind == "i" else 1)
        drawn[name] = np.asarray(values.round() if name == "starts" else values).astype(dtype)
    return drawn


def _rows(answer: Mapping[str, Array] | Array) -> Iterator[Mapping[str, Array] | Array]:
    """The answer of each session of a pool."""
    for row in range(_SESSIONS):
        yield {key: value[row] for key, value in answer.items()} if isinstance(answer, Mapping) else answer[row]


def _flat(answer: Mapping[str, Array] | Array) -> Array:
    """All outputs of one step, in the order of their names."""
    values = [answer[name] for name in sorted(answer)] if isinstance(answer, Mapping) else [answer]
    return np.concatenate([np.asarray(value).reshape(-1) for value in values])


def _wanted(case: Case, drawn: Mapping[str, Array], row: int) -> Array:
    return np.stack(case.loop([{name: value[row, step] for name, value in drawn.items()} for step in range(_STEPS)]))


def _sent(values: dict[str, Array]) -> Any:
    return values if len(values) > 1 else next(iter(values.values()))


def _same(found: Sequence[Array], wanted: Array, how: str) -> None:
    """Compares all bits, but where the model is said to have others in another batch: there what rounding may be."""
    if how == "approximate":
        tolerance = 16 * float(np.finfo(wanted.dtype).eps)
        np.testing.assert_allclose(np.stack(found), wanted, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(np.stack(found), wanted)
        assert np.stack(found).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ZOO)
def test_a_session_streams_what_a_loop_by_hand_gives_over_a_kill(streamed: dict[str, Streamed], name: str) -> None:
    one, case = streamed[name], ZOO[name]()
    if one.error is not None:
        raise one.error
    # A loop by hand runs one row, and so does the server for a session that is alone: unless it runs one row as two.
    how = "approximate" if one.model.batch_invariance == "padded" else "exact"
    _same(one.alone, _wanted(case, _drawn(case, _SESSIONS), 0), how)


@pytest.mark.parametrize("name", ZOO)
def test_so_do_32_sessions_at_once(streamed: dict[str, Streamed], name: str) -> None:
    one, case = streamed[name], ZOO[name]()
    if one.error is not None:
        raise one.error
    drawn = _drawn(case, _SESSIONS)
    how = "approximate" if one.model.batch_invariance in ("padded", "approximate") else "exact"
    for row in range(_SESSIONS):
        _same(one.among[row], _wanted(case, drawn, row), how)


def test_a_session_is_opened_with_its_own_constant(client: Any) -> None:
    case = ZOO["a rate of each session"]()
    drawn = _drawn(case, 1)
    start = {"sr": np.asarray(8000), "state": np.zeros((2, 8)), "input_last": np.zeros(4)}
    with client.session("a-rate-of-each-session", initial_state=start) as session:
        found = [_flat(session.step(drawn["input"][0, step])) for step in range(_STEPS)]
    slower = Case(case.model, case.states, case.inputs, fixed={"sr": 8000}, context=case.context)
    _same(found, _wanted(slower, drawn, 0), "exact")


@pytest.mark.parametrize("name", ZOO)
def test_runs_are_shared_where_the_file_allows(client: Any, name: str) -> None:
    (model,) = (each for each in client.models() if each.name == _slug(name))
    batched = all(spec.HasField("batch_axis") and spec.shape[spec.batch_axis] < 0 for spec in model.signature.states)
    assert batched == ZOO[name]().batched


def test_several_frames_of_a_fixed_length_are_as_many_steps(client: Any) -> None:
    case = ZOO["frames of a fixed length"]()
    drawn = _drawn(case, 1)
    with client.session(_slug("frames of a fixed length")) as session:
        answer = session.step(drawn["frames"][0])
    _same(list(answer.reshape(_STEPS, -1)), _wanted(case, drawn, 0), "exact")
