"""`statestream sign` and `statestream inspect` on files without a signature."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from statestream import signature as signatures
from statestream_server import describe
from statestream_server.filecommands import inspect, sign
from statestream_server.models.form import entries
from statestream_server.models.form.told import Context, Told, Window
from tests.server.models.form_zoo import CASES
from tests.server.models.form_zoo_couples import COUPLES
from tests.server.models.form_zoo_windows import WINDOWS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vad.onnx"
    onnx.save(CASES["silero"]().model, path)
    return path


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(sign, list(arguments))
    return done.exit_code, done.output


OPTIONS = ("--context", "input=4", "--constant", "sr=16000", "--shape", "input=batch,16")


def test_a_signed_copy_is_what_the_file_is_with_its_toml(file: Path) -> None:
    copy = file.with_name("copy.onnx")
    assert run(str(file), *OPTIONS, "-o", str(copy))[0] == 0
    signature = signatures.loads(onnx.load(copy).metadata_props[0].value)
    assert [(state.input, state.output) for state in signature.states] == [
        ("state", "stateN"),
        ("input_last", "input_last_next"),
    ]
    assert run(str(file), *OPTIONS, "--toml") == (0, f"{file.with_suffix('.toml')}: written\n")
    digests = [dict(describe.facts(path, device="cpu"))["digest"] for path in (file, copy)]
    assert digests[0] == digests[1]
    code, said = run(str(copy))
    assert (code, "has a signature already" in said) == (1, True)


@pytest.mark.parametrize("before", ["start", "pad", "hold"])
def test_a_window_is_signed_with_what_stands_before_it(tmp_path: Path, before: str) -> None:
    file, copy = tmp_path / "tcn.onnx", tmp_path / "copy.onnx"
    onnx.save(WINDOWS["tcn"]().model, file)
    option = ("--window", "x=4" if before == "start" else f"x=4,{before}")
    assert run(str(file), *option, "-o", str(copy))[0] == 0
    (window,) = signatures.loads(onnx.load(copy).metadata_props[0].value).windows
    assert signatures.WindowStart.Name(window.before).endswith({"start": "VALUE"}.get(before, before.upper()))
    assert run(str(file), *option, "--toml") == (0, f"{file.with_suffix('.toml')}: written\n")
    facts = [dict(describe.facts(path, device="cpu")) for path in (file, copy)]
    for fact in ("digest", "row", "window", "batching"):
        one, other = (each[fact].partition(" (tried")[0] for each in facts)  # How wide a run was tried is the clock's.
        assert one == other
    assert "expected a number of steps" in run(str(file), "--window", "x=many")[1]
    assert "expected a number of steps" in run(str(file), "--window", "x=4,never")[1]


def test_what_forecasts_is_signed_with_it(tmp_path: Path) -> None:
    file, copy = tmp_path / "beats.onnx", tmp_path / "copy.onnx"
    onnx.save(WINDOWS["n-beats"]().model, file)
    shown = [text for key, text in describe.facts(file, device="cpu") if key == "a window?"]
    assert (
        'window = { "insample" = 4 } and, if output forecast has steps ahead, horizon = { "forecast" = 1 }' in shown[0]
    )
    options = ("--window", "insample=4", "--horizon", "forecast=1", "--feedback", "forecast=insample")
    assert run(str(file), *options, "-o", str(copy))[0] == 0
    signature = signatures.loads(onnx.load(copy).metadata_props[0].value)
    assert (signature.outputs[0].horizon_axis, signature.feedback[0].input) == (1, "insample")
    assert "horizon.y is 'a'; expected the axis of the steps ahead" in run(str(file), "--horizon", "y=a")[1]
    assert "horizon names 'y', which is no output" in run(str(file), "--horizon", "y=1")[1]
    assert "feedback names 'z', which is no input" in run(str(file), "--feedback", "forecast=z")[1]
    wrong = run(str(file), "--window", "insample=4", "--horizon", "forecast=2")
    assert "horizon_axis is 2; the tensor has 2 axes" in wrong[1]


def test_an_encoder_and_its_decoder_are_signed_together(tmp_path: Path) -> None:
    couple = dataclasses.replace(COUPLES["lstm"](), config={})
    file = couple.save(tmp_path / "a")
    code, said = run(str(file))
    assert (code, "nobody says what a text begins and ends with" in said) == (1, True)
    tokens = [f"{key}={value}" for key, value in (("start_token", 0), ("end_token", 1), ("max_tokens", 4))]
    options = [part for each in tokens for part in ("--generate", each)]
    code, said = run(str(file.with_name("encoder_model.onnx")), *options, "-o", str(tmp_path / "b"))
    assert (code, said.count("written")) == (0, 2)
    assert run(str(file), *options, "--toml") == (0, f"{tmp_path / 'a/model.toml'}: written\n")
    shown = [describe.facts(tmp_path / name, device="cpu") for name in "ab"]
    digests = [dict(each)["digest"] for each in shown]
    assert digests[0] == digests[1]
    wires = [text for key, text in shown[0] if key == "wire"]
    assert wires == ["h starts from the encoder's h", "c starts from the encoder's c"]
    assert "has a signature already" in run(str(tmp_path / "b/decoder.onnx"))[1]


def test_what_is_missing_or_wrong_is_said(file: Path) -> None:
    code, said = run(str(file), "--context", "input=4", "--constant", "sr=16000")
    assert code == 1
    assert 'say in vad.toml beside it: shapes = { "input" = ["batch", …] }' in said
    assert "constants names 'rate', which is no input" in run(str(file), "--constant", "rate=1")[1]
    assert "is not of the form NAME=VALUE" in run(str(file), "--constant", "16000")[1]
    assert "constants.sr is 'fast'; expected a number" in run(str(file), "--constant", "sr=fast")[1]
    assert not list(file.parent.glob("*.signed.onnx"))


def test_inspect_tells_the_evidence(file: Path) -> None:
    file.with_suffix(".toml").write_text(CASES["silero"]().told)
    found = json.loads(CliRunner().invoke(inspect, [str(file), "--json"]).output)
    assert found["form"] == ["as model.toml says"]
    assert found["evidence"] == ["state → stateN: LSTM's hidden state starts from it and ends in stateN"]
    assert "input sr became the constant 16000" in found["surgery"]


def test_inspect_prints_a_table_on_a_terminal(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.with_suffix(".toml").write_text(CASES["a rate of each session"]().told)
    describe.show(file, device="cpu")
    shown = capsys.readouterr().out
    assert "one at a time" in shown
    assert "sr is kept for a session" in shown


def test_what_is_told_is_written_as_it_is_read() -> None:
    said = Told(
        states={'a "b"': "c\nd"},
        start={"h": (1.5, 2)},
        shapes={"x": ("batch", "time", 3)},
        context={"x": Context(3, 1), "z": Context(2)},
        window={"x": Window(3), "y": Window(3, 1, "pad"), "z": Window(24, before="hold")},
        sizes={"x": (("batch", 3), ("batch", 4))},
        constants={"sr": (16000,)},
        counters={"n": 4},
        columns={"x": ("a", "b", "c")},
        horizon={"y": 1},
        feedback={"y": "x"},
        ahead=("season",),
        generate={"start_token": 0, "max_tokens": 64},
    )
    assert entries.loads(entries.dumps(said)) == said
    assert entries.loads(entries.dumps(Told(stateless=True))) == Told(stateless=True)
    assert entries.loads(entries.dumps(Told(states={}))) == Told(states={})
