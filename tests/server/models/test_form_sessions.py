"""Files without a signature whose sessions set something once, see past steps, or have a size of their own."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import statestream
from statestream import signature as signatures
from statestream.signature import WindowStart
from statestream_server import describe
from statestream_server.arrays import Array
from tests.server.models.form_zoo import CASES, Case, video_matting
from tests.server.models.form_zoo_windows import WINDOWS, Windowed
from tests.support import serving
from tests.support.calls import DEADLINE

_SESSIONS, _STEPS = 32, 9
SET = {"a rate of each session": ("sr", 8000), "a language of each session": ("lang", 2)}
"""Constants that sessions set once, and not what they are by default."""
ZOO: dict[str, Callable[[], Case]] = {**WINDOWS, **{name: CASES[name] for name in SET}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("zoo")
    for name, made in ZOO.items():
        _write(made(), folder / _slug(name))
    with serving.process(folder, "--store", "memory") as server, statestream.connect(server.address) as client:
        yield client


def _write(case: Case, folder: Path) -> None:
    place = folder / "1"
    place.mkdir(parents=True)
    onnx.save(case.model, place / "model.onnx")
    (place / "model.toml").write_text(case.told)


def _slug(name: str) -> str:
    return "-".join(name.split())


def _drawn(case: Case, count: int) -> dict[str, Array]:
    """Steps of so many sessions: [count, steps, *step shape]."""
    rng = np.random.default_rng(5)
    return {name: rng.standard_normal((count, _STEPS, *shape)).astype("f") for name, shape in case.inputs.items()}


def _flat(answer: Mapping[str, Array] | Array) -> Array:
    """All outputs of one step, in the order of their names."""
    values = [answer[name] for name in sorted(answer)] if isinstance(answer, Mapping) else [answer]
    return np.concatenate([np.asarray(value).reshape(-1) for value in values])


def _wanted(case: Case, drawn: Mapping[str, Array], row: int) -> Array:
    return np.stack(case.loop([{name: value[row, step] for name, value in drawn.items()} for step in range(_STEPS)]))


def _sent(values: dict[str, Array]) -> Any:
    return values if len(values) > 1 else next(iter(values.values()))


HELD = {name: case for name in WINDOWS if isinstance(case := WINDOWS[name](), Windowed)}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_have_the_bits_of_a_loop_alone_among_others_and_in_chunks(client: Any, name: str) -> None:
    case, (model,) = WINDOWS[name](), (each for each in client.models() if each.name == _slug(name))
    drawn = _drawn(case, _SESSIONS)
    wanted = [_wanted(case, drawn, row) for row in range(_SESSIONS)]
    with client.session(_slug(name)) as session, client.sessions(_slug(name), _SESSIONS) as pool:
        whole = session.step(_sent({key: value[0] for key, value in drawn.items()}))
        for step in range(len(wanted[0])):
            answer = pool.step(_sent({key: value[:, step] for key, value in drawn.items()}))
            for row in range(_SESSIONS):
                _check_bits(model, _flat(_row(answer, row)), wanted[row][step])
            _check_bits(model, _flat(_row(whole, step)), wanted[0][step])


def _check_bits(model: Any, found: Array, wanted: Array) -> None:
    if model.batch_invariance == "approximate":
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(found, wanted)


def _row(answer: Mapping[str, Array] | Array, row: int) -> Mapping[str, Array] | Array:
    return {key: value[row] for key, value in answer.items()} if isinstance(answer, Mapping) else answer[row]


def test_several_steps_run_at_once_with_the_same_bits(client: Any, tmp_path: Path) -> None:
    """Each step sees a window of its own, laid out as rows of one batch."""
    case = WINDOWS["tcn"]()
    onnx.save(case.model, tmp_path / "model.onnx")
    (tmp_path / "model.toml").write_text(case.told)
    found = dict(describe.facts(tmp_path / "model.onnx", device="cpu"))
    assert found["row"].endswith("up to 256 steps in one run")
    (drawn,) = _drawn(case, 1).values()
    steps = np.concatenate([drawn[0]] * 40)
    with client.session("tcn") as one, client.session("tcn") as other:
        np.testing.assert_array_equal(one.step(steps), [other.step(step) for step in steps])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 5])
def test_a_chunk_with_what_is_no_number_is_refused_whole_wherever_it_is(client: Any, poison: float, place: int) -> None:
    """Behind the last step it would have left the window."""
    case = WINDOWS["tcn"]()
    (drawn,) = _drawn(case, 1).values()
    bad = np.concatenate([drawn[0]] * 2)
    bad[place, 1] = poison
    with client.session("tcn") as session:
        with pytest.raises(statestream.errors.NonFiniteState):
            session.step(bad)
        np.testing.assert_array_equal(session.step(drawn[0]), _wanted(case, {"x": drawn}, 0))


def test_what_stands_before_the_first_step_is_in_the_signature(client: Any) -> None:
    found = {model.name: [*model.signature.windows] for model in client.models()}
    for name, case in HELD.items():
        ((given, (steps, _, before)),) = case.window.items()
        (window,) = found[_slug(name)]
        named = WindowStart.Name(window.before).removeprefix("WINDOW_START_").lower()
        assert (window.input, window.steps, named.replace("value", "start")) == (given, steps, before)
        assert bool(window.count) == (before != "start")
        assert window.full == ("full" if name == "cnn over a window" else "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input": "z"}, "no such input"),
        ({"steps": 1}, "steps is 1; expected 2 or more"),
        ({"state": "z"}, "state is 'z'; expected one of the states"),
        ({"count": ""}, "count is ''; expected one of the states"),
        ({"full": "z"}, "full is 'z'; no such output"),
        ({"axis": 3}, "axis is 3; expected that of 3 steps in"),
        ({"steps": 9}, "axis is 1; expected that of 8 steps in"),
        ({"before": 9}, "before is 9; expected 0 to 3"),
    ],
)
def test_a_signature_whose_window_contradicts_it_is_refused(client: Any, change: dict[str, Any], says: str) -> None:
    (model,) = (each for each in client.models() if each.name == "cnn-over-a-window")
    signature = signatures.Signature()
    signature.CopyFrom(model.signature)
    signatures.check(signature)
    signature.windows[0].MergeFrom(signatures.Window(**change))
    if "count" in change:
        signature.windows[0].ClearField("count")
    with pytest.raises(signatures.SignatureError, match=says):
        signatures.check(signature)


@pytest.mark.parametrize("name", HELD)
def test_a_reset_empties_the_window_and_a_fork_has_it(client: Any, name: str) -> None:
    case = HELD[name]
    drawn = _drawn(case, 1)
    wanted = _wanted(case, drawn, 0)
    steps = [_sent({key: value[0, step] for key, value in drawn.items()}) for step in range(_STEPS)]
    with client.session(_slug(name)) as session:
        session.step(_sent({key: value[0, : _STEPS - 1] for key, value in drawn.items()}))
        with session.fork() as fork:
            np.testing.assert_allclose(_flat(fork.step(steps[-1])), wanted[-1], rtol=2e-3, atol=1e-5)
        session.reset()
        np.testing.assert_allclose(_flat(session.step(steps[0])), wanted[0], rtol=2e-3, atol=1e-5)


@pytest.mark.slow
def test_windows_survive_a_kill(tmp_path: Path) -> None:
    found: dict[str, list[Array]] = {name: [] for name in WINDOWS}
    for name, made in WINDOWS.items():
        _write(made(), tmp_path / "models" / _slug(name))
    options = ("--store", f"sqlite:{tmp_path / 'sessions.db'}")
    with serving.process(tmp_path / "models", *options) as server, statestream.connect(server.address) as client:
        drawn = {name: _drawn(made(), 1) for name, made in WINDOWS.items()}
        sessions = {name: client.session(_slug(name), "a") for name in WINDOWS}
        for step in range(_STEPS):
            if step in (2, 6):  # Before the windows are full, and behind.
                server.kill()
                server.start()
            for name, session in sessions.items():
                sent = _sent({key: value[0, step] for key, value in drawn[name].items()})
                found[name].append(_flat(session.step(sent)))
                if step == 1:
                    session.flush()
    for name, made in WINDOWS.items():
        np.testing.assert_allclose(np.stack(found[name]), _wanted(made(), drawn[name], 0), rtol=1e-6, atol=1e-6)


def _set(name: str) -> tuple[Case, dict[str, Any]]:
    """A case with another constant, and what a session is opened with."""
    case, (constant, value) = CASES[name](), SET[name]
    shape = np.shape(case.fixed[constant])
    return dataclasses.replace(case, fixed={constant: np.full(shape, value)}), {constant: value}


@pytest.mark.parametrize("name", SET)
def test_a_session_is_opened_with_its_own_constant_by_its_name(client: Any, name: str) -> None:
    other, start = _set(name)
    ((key, drawn),) = _drawn(other, 1).items()
    steps = range(_STEPS)
    with client.session(_slug(name), initial_state=start) as own, client.session(_slug(name)) as plain:
        found = np.stack([[_flat(each.step(drawn[0, step])) for each in (own, plain)] for step in steps])
    for place, case in enumerate((other, CASES[name]())):
        np.testing.assert_allclose(found[:, place], _wanted(case, {key: drawn}, 0), rtol=2e-3, atol=1e-5)
    assert not np.allclose(found[:, 0], found[:, 1], rtol=1e-3)


@pytest.mark.parametrize("name", SET)
def test_the_signature_tells_what_is_set_once_and_its_default(client: Any, name: str) -> None:
    (model,) = (each for each in client.models() if each.name == _slug(name))
    (constant,) = (state for state in model.signature.states if state.constant)
    assert constant.input == SET[name][0]
    assert list(constant.start) == np.ravel(CASES[name]().fixed[constant.input]).tolist()


@pytest.mark.parametrize("name", SET)
def test_forks_snapshots_resets_and_pools_keep_what_a_session_set(client: Any, name: str) -> None:
    other, start = _set(name)
    (drawn,) = _drawn(other, 1).values()
    wanted = _wanted(other, {next(iter(other.inputs)): drawn}, 0)
    with client.session(_slug(name), initial_state=start) as session:
        session.step(drawn[0, 0])
        forked, restored = session.fork(), client.restore(session.snapshot(), model=_slug(name))
        for copy in (session, forked, restored):
            np.testing.assert_allclose(_flat(copy.step(drawn[0, 1])), wanted[1], rtol=2e-3, atol=1e-5)
            copy.reset()
            np.testing.assert_allclose(_flat(copy.step(drawn[0, 0])), wanted[0], rtol=2e-3, atol=1e-5)
        forked.close()
        restored.close()
    # In a pool each row has its own.
    (constant, value), default = SET[name], np.ravel(CASES[name]().fixed[SET[name][0]])[0]
    values = np.asarray([value, default])
    with client.sessions(_slug(name), 2, initial_state={constant: values}) as pool:
        found = pool.step(drawn[[0, 0], 0])
    np.testing.assert_allclose(_flat(found[0]), wanted[0], rtol=2e-3, atol=1e-5)
    assert not np.allclose(_flat(found[1]), wanted[0], rtol=1e-3)


@pytest.mark.parametrize("name", SET)
def test_a_name_that_is_no_state_is_refused_with_those_that_are(client: Any, name: str) -> None:
    with pytest.raises(statestream.errors.BadTensor, match=f"has 'speed'; expected any of .*'{SET[name][0]}'"):
        client.session(_slug(name), initial_state={"speed": 1})


def until(wanted: Callable[[], bool]) -> None:
    """Returns once it is so."""
    deadline = time.monotonic() + DEADLINE
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_session_set_survives_kills_and_sleep_and_moves_to_another_version(tmp_path: Path) -> None:
    folder, store = tmp_path / "models", f"sqlite:{tmp_path / 'sessions.db'}"
    for name in SET:
        _write(CASES[name](), folder / _slug(name))
    steps = {name: next(iter(_drawn(CASES[name](), 1).values())) for name in SET}
    found: dict[str, list[Array]] = {name: [] for name in SET}
    sessions = dict[str, Any]()
    options = ("--store", store, "--checkpoint-interval", "30", "--hibernate-after", "1")
    with serving.process(folder, *options) as server, statestream.connect(server.address) as client:
        for name in SET:
            sessions[name] = client.session(_slug(name), "a", initial_state=_set(name)[1])
            found[name] += [_flat(sessions[name].step(steps[name][0, step])) for step in range(2)]
        server.kill()  # Nothing but the claims is saved: steps are replayed.
        for name in SET:
            shutil.copytree(folder / _slug(name) / "1", folder / _slug(name) / "2")
        server.start()
        for name in SET:
            found[name].append(_flat(sessions[name].step(steps[name][0, 2])))
            sessions[name].flush()
        until(lambda: all(each.residence == "stored" for each in client.list_sessions()))
        for name in SET:
            found[name].append(_flat(sessions[name].step(steps[name][0, 3])))
            sessions[name].close()
            moved = client.session(_slug(name), "a", upgrade=2)
            assert moved.version == 2
            found[name] += [_flat(moved.step(steps[name][0, step])) for step in range(4, _STEPS)]
    for name in SET:
        other, key = _set(name)[0], next(iter(CASES[name]().inputs))
        np.testing.assert_allclose(np.stack(found[name]), _wanted(other, {key: steps[name]}, 0), rtol=2e-3, atol=1e-5)


@pytest.mark.slow
def test_sessions_of_two_resolutions_run_at_once_and_survive_a_kill(tmp_path: Path) -> None:
    """One file, a model for each size: its own table, batched with its like."""
    sizes = ((4, 6), (2, 4))
    case = video_matting(sizes)
    _write(case, tmp_path / "models" / "matting")
    cases = {f"matting-{h}x{w}": dataclasses.replace(case, inputs={"src": (3, h, w)}) for h, w in sizes}
    drawn = {name: _drawn(one, 8) for name, one in cases.items()}
    found: dict[str, list[Any]] = {name: [] for name in cases}
    options = ("--store", f"sqlite:{tmp_path / 'sessions.db'}", "--durability", "sync")
    with serving.process(tmp_path / "models", *options) as server, statestream.connect(server.address) as client:
        assert [model.name for model in client.models()] == sorted(cases)
        pools = {name: client.sessions(name, ids=[f"{name}-{row}" for row in range(8)]) for name in cases}
        for step in range(_STEPS):
            if step == 2:
                server.kill()
                server.start()
            for name, pool in pools.items():
                found[name].append(pool.step(drawn[name]["src"][:, step]))
        with pytest.raises(statestream.errors.BadTensor):
            pools["matting-4x6"].step(drawn["matting-2x4"]["src"][:, 0])
        with pytest.raises(statestream.errors.ModelNotFound, match="served: matting-2x4, matting-4x6"):
            client.session("matting")
        for model in client.models():
            assert model.batch_invariance == "exact"
    for name, one in cases.items():
        for row in range(8):
            mine = np.stack([_flat(answer[row]) for answer in found[name]])
            np.testing.assert_array_equal(mine, _wanted(one, drawn[name], row))
