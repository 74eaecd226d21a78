"""Trials: what crashes, hangs or eats there costs one line; what survives is built as it was found."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from statestream.signature import Signature, StateSpec, TensorSpec
from statestream_server.models.graphs.runtime import providers_for
from statestream_server.models.model import BatchPolicy, Kind, Model, ModelLoadError
from statestream_server.models.proof import building, loading, making, trials
from statestream_server.models.proof.trials import Trials
from statestream_server.models.proof.verdict import TrialLimits, Verdict
from tests.server.models import graphs
from tests.support import hostile, models

CPU = providers_for("cpu")
USUAL = TrialLimits()
TIGHT = TrialLimits(seconds=1, megabytes=256)


def load(path: Path, limits: TrialLimits = USUAL) -> Model:
    return loading.load_file(path, name="m", version=1, device=CPU, limits=limits)


def tried(some: Trials, path: Path, limits: TrialLimits = USUAL) -> Verdict:
    return some(path, device="cpu", threads=1, apart=False, policy=BatchPolicy.PAD, limits=limits)


@pytest.fixture
def fresh() -> Iterator[Trials]:
    made = Trials()
    yield made
    made.close()


@pytest.mark.parametrize("kind", hostile.KILLERS)
def test_what_ends_a_trial_is_one_line_that_says_how_and_what_to_do(tmp_path: Path, kind: str) -> None:
    make, said = hostile.KILLERS[kind]
    path = hostile.put(make(), tmp_path, kind)
    with pytest.raises(ModelLoadError, match=f"model.onnx: .*{said}") as caught:
        load(path, TIGHT)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    # The next model is not its concern.
    assert load(graphs.save(models.scores(), tmp_path / "good" / "1")).kind == Kind.PREDICT


def test_one_process_tries_many_models(tmp_path: Path, fresh: Trials) -> None:
    paths = [graphs.save(made(), tmp_path / str(at) / "1") for at, made in enumerate((models.scores, models.gru))]
    for path in paths * 2:
        tried(fresh, path)
    assert len(fresh._idle) == 1
    assert not fresh._busy


def test_a_model_that_hangs_holds_up_no_other(tmp_path: Path, fresh: Trials) -> None:
    hangs, good = hostile.put(hostile.endless(), tmp_path, "hangs"), hostile.put(models.scores(), tmp_path, "good")
    ended = list[str]()

    def hang() -> None:
        try:
            tried(fresh, hangs, TrialLimits(seconds=60))
        except ModelLoadError as error:
            ended.append(str(error))

    waiting = threading.Thread(target=hang)
    waiting.start()
    try:
        assert tried(fresh, good).digest
        assert waiting.is_alive()
    finally:
        fresh.close()
        waiting.join(30)
    assert ended == [f"{hangs}: was not loaded: the server is leaving"]


def test_a_file_of_another_kind_than_was_tried_is_not_built(tmp_path: Path) -> None:
    path = graphs.save(models.gru(), tmp_path / "1")
    verdict = making.prove(path, CPU)
    graphs.save(models.lstm(), tmp_path / "1")
    with pytest.raises(ModelLoadError, match="changed between its trial and now; load it again"):
        building.build(path, verdict, name="m", version=1, device=CPU)


def test_a_verdict_says_all_that_a_model_is_built_from(tmp_path: Path, fresh: Trials) -> None:
    path = graphs.save(graphs.recurrent("RNN", hidden=64)[0], tmp_path / "1")
    found = tried(fresh, path)
    assert (found.fused, found.policy, dict(found.hides)) == (True, "padded", {"x": "nan inf"})
    assert Verdict.loads(json.loads(found.dumps())) == found
    model = building.build(path, found, name="m", version=1, device=CPU)
    assert (model.digest, model.invariance_note) == (found.digest, found.invariance_note)
    assert type(model.rows).__name__ == "PaddedRows"


def test_what_a_trial_logs_is_logged_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = graphs.delay()[0]
    made.opset_import[0].version = 10
    with caplog.at_level(logging.WARNING, logger="statestream_server"):
        load(graphs.save(made, tmp_path / "1"))
    assert "rows are copied in and out at every step, the graph cannot do it: opset 10" in caplog.text


def test_a_process_that_left_by_itself_is_replaced(tmp_path: Path, fresh: Trials) -> None:
    path = graphs.save(models.scores(), tmp_path / "1")
    digest = tried(fresh, path).digest
    (child,) = fresh._idle
    child._process.kill()
    child._process.wait()
    assert tried(fresh, path).digest == digest


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread watches, which native code may hold up")
def test_no_trial_outlives_its_server_not_even_one_that_hangs(tmp_path: Path) -> None:
    path = hostile.put(hostile.endless(), tmp_path, "hangs")
    code = (
        "import sys; from pathlib import Path\n"
        "from statestream_server.models.proof import trials\n"
        "from tests.server.models.test_trials import tried\n"
        "some = trials.Trials(); some.prepare(); print(some._idle[0]._process.pid, flush=True)\n"
        "tried(some, Path(sys.argv[1]))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.mark.slow
def test_a_model_of_large_states_needs_no_more_than_a_few_of_them(tmp_path: Path, fresh: Trials) -> None:
    """32 MiB a session: 64 of them, twice, would be 4 GiB."""
    b, shape = graphs.Builder(), [-1, 1 << 23]
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="float32", shape=[-1, 1], batch_axis=0)],
        outputs=[TensorSpec(name="y", dtype="float32", shape=[-1, 1], batch_axis=0)],
        states=[StateSpec(input="s", output="s_out", dtype="float32", shape=shape, batch_axis=0)],
    )
    b.add("Add", ["s", "x"], ["s_out"])
    b.add("Identity", ["x"], ["y"])
    verdict = tried(fresh, graphs.save(b.model(signature), tmp_path / "1"))
    assert verdict.invariance_note == "the same bits (tried alone and in batches up to 2)"


SEEDS = {"gru": models.gru, "counter": models.counter, "scores": models.scores}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_file_is_refused_or_served_and_nothing_else(tmp_path: Path, name: str, fresh: Trials) -> None:
    """Flipped bytes, cut and doubled parts, by seed: none ends the process, hangs it, or escapes as another error."""
    good = SEEDS[name]().SerializeToString()
    draw, path, said = random.Random(f"damage {name}"), tmp_path / "model.onnx", list[str]()
    for _ in range(120):
        data = bytearray(good)
        match draw.randrange(4):
            case 0:
                del data[draw.randrange(len(data)) :]
            case 1:
                at = draw.randrange(len(data))
                data[at:at] = data[at : at + draw.randrange(1, 64)]
            case _:
                for _ in range(draw.randrange(1, 4)):
                    data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            tried(fresh, path, TrialLimits(seconds=20, megabytes=1024))
        except ModelLoadError as error:
            said.append(str(error))
    assert said
    assert all(str(path) in one and "\n" not in one for one in said)


def test_the_shared_trials_come_back_after_they_were_closed(tmp_path: Path) -> None:
    path = graphs.save(models.scores(), tmp_path / "1")
    trials.shared().close()
    assert load(path).kind == Kind.PREDICT
    assert os.getpid() != trials.shared()._idle[0]._process.pid


def test_a_load_that_asks_for_a_process_when_all_are_ended_for_good_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread would be waited for at the end of the process, and with it a trial that nobody ends."""
    monkeypatch.setattr(trials, "_left", False)
    monkeypatch.setattr(trials, "_shared", None)
    trials.leave()
    assert trials.shared().closed
    assert trials.shared() is trials.shared()
