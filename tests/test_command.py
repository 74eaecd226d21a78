"""The subcommands that use models and change sessions, against a real server of the example models."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import statestream
from statestream import cli
from statestream.command import group
from tests.support import models
from tests.support.pages import ROOT, blocks, run_by, runner
from tests.support.serving import process
from tests.support.terminal import rest

EXAMPLES = ROOT / "deploy" / "models"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # A copy: an alias is written beside the versions.
    models = shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("served") / "models")
    with process(models, "--store", "memory") as server:
        yield server.address


@pytest.fixture
def call(address: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("STATESTREAM_ADDRESS", address)

    def call(*args: str, typed: str | bytes = "", code: int = 0) -> str:
        result: Result = CliRunner().invoke(group.main, args, input=typed)
        assert result.exit_code == code, result.output
        return result.output

    return call


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_session_is_piped(call: Callable[..., str]) -> None:
    first = rows(call("run", "sunspots", "--id", "piped", typed="29.8\n\n15.2\n"))
    assert [row["position"] for row in first] == [1, 2]
    (third,) = rows(call("run", "sunspots", "--id", "piped", typed="[7.5]\n"))
    assert third["position"] == 3
    again = rows(call("run", "sunspots", typed="sunspots\n29.8\n15.2\n7.5\n"))
    assert [row["y"] for row in again] == [row["y"] for row in [*first, third]]
    assert rows(call("run", "sunspots", typed='{"sunspots": 29.8}\n'))[0]["y"] == first[0]["y"]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("1\nmany\n", "line 2: 'many' is no number; expected a number (sunspots)"),
        ('{"moon": 1}', "line 1: the line names 'moon'; expected 'sunspots'"),
        ("[1, 2", "line 1: '[1, 2' is no JSON"),
        ("1 2 3", "line 1: BAD_TENSOR: x has shape [3]"),
        ("nan", "line 1: "),
        ("[[]]", "line 1: "),
        ('["a"]', "line 1: "),
    ],
)
def test_a_line_that_is_no_step_is_named(call: Callable[..., str], typed: str, says: str) -> None:
    assert says in call("run", "sunspots", typed=typed, code=1)


def test_texts(call: Callable[..., str]) -> None:
    assert rows(call("run", "antonyms", typed="king\n")) == [{"text": "queen"}]
    assert call("generate", "antonyms", "king") == "queen\n"
    assert rows(call("generate", "antonyms", "--json", typed="king\n")) == [{"source": "king", "text": "queen"}]
    (alone,) = rows(call("run", "sentiment", typed="a fine film\n"))
    two = rows(call("predict", "sentiment", "-", typed="a fine film\na film\n"))
    assert two[0].keys() == alone.keys()
    assert len(two) == 2
    assert "--id has nothing to name" in call("run", "antonyms", "--id", "a", typed="king", code=2)


def test_a_dash_is_standard_input_everywhere(call: Callable[..., str], tmp_path: Path) -> None:
    once = call("run", "sunspots", typed="29.8\n15.2\n")
    assert call("run", "sunspots", "-", typed="29.8\n15.2\n") == once
    file = tmp_path / "numbers.csv"
    file.write_bytes(b"\xef\xbb\xbfsunspots\r\n29.8\r\n15.2\r\n")  # As a spreadsheet writes it.
    assert call("run", "sunspots", str(file)) == once
    file.write_text("29.8\nmany\n", "utf-8")
    assert f"{file}, line 2: 'many' is no number" in call("run", "sunspots", str(file), code=1)
    assert call("generate", "antonyms", "-", typed="king\r\n\nup\n") == "queen\ndown\n"
    assert call("generate", "antonyms", "up", "-", "up", typed="king\n") == "down\nqueen\ndown\n"
    assert "standard input has 1 lines" in call("forecast", "sunspots", "-", typed="1\n", code=2)
    for command in (("run", "sunspots"), ("forecast", "sunspots"), ("predict", "sentiment"), ("generate", "antonyms")):
        said = call(*command, "-", typed=b"a\n\xff", code=1 if command[0] == "run" else 2)
        assert "line 1: 'a' is no number" in said or "standard input, line 2: byte 0xff is no text in UTF-8" in said
        assert " - " in call(command[0], "-h")


def test_arrays_and_snapshots_are_piped(call: Callable[..., Any], tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.ones((2, 5), np.int64))
    answers = call("predict", "sentiment", "-", typed=array.getvalue())
    assert len(rows(answers)) == 2
    call("run", "sunspots", "--id", "kept", typed="29.8\n")
    kept = tmp_path / "kept.session"
    call("sessions", "snapshot", "sunspots", "kept", "-o", str(kept))
    assert "again is at position 1" in call("sessions", "restore", "sunspots", "again", "-", typed=kept.read_bytes())
    assert "name a file" in call("sessions", "snapshot", "sunspots", "kept", "-o", "-", "--json", code=2)
    result = CliRunner().invoke(group.main, ["sessions", "snapshot", "sunspots", "kept", "-o", "-"])
    assert "third is at position 1" in call("sessions", "restore", "sunspots", "third", "-", typed=result.stdout_bytes)


def test_a_forecast_of_what_is_piped(call: Callable[..., str], tmp_path: Path) -> None:
    past = "sunspots\n" + "\n".join(str(10 + n % 7) for n in range(60)) + "\n"
    assert len(call("forecast", "sunspots", "-", "--h", "3", typed=past).splitlines()) == 4
    shown = call("forecast", "sunspots", "-", "--h", "2", "--level", "80", "--bands", "conformal", typed=past)
    assert shown.splitlines()[0].count("-lo-80") == 1
    assert len(rows(call("forecast", "sunspots", "-", "--h", "3", "--json", typed=past))) == 3
    series = "unique_id,ds,sunspots\n" + "".join(f"{s},20{y},{y}\n" for s in "ab" for y in range(10, 70))
    file = tmp_path / "past.csv"
    file.write_text(series, "utf-8")
    assert len(call("forecast", "sunspots", str(file), "--h", "3").splitlines()) == 7
    assert "missing: sunspots" in call("forecast", "sunspots", "-", typed="moon\n1\n", code=2)
    assert "expected CSV with a header" in call("forecast", "sunspots", "-", typed="1\n", code=2)


@pytest.mark.parametrize(
    ("model", "typed", "says"),
    [
        ("sunspots", "a,sunspots\n1,2\n\n3\n", "standard input, line 4 has 1 values; the header has 2"),
        ("sunspots", "sunspots\n1\nmany\n", "standard input, row 2 below the header: 'many' is no number"),
        ("sunspots", "unique_id,ds,sunspots\na,lately,1\n", "column ds has what is no time: "),
        ("sunspots", "unique_id,ds,sunspots\na,2020-01-01,many\n", "column sunspots has what is no number: "),
    ],
)
def test_what_is_wrong_with_a_table_is_said(call: Callable[..., str], model: str, typed: str, says: str) -> None:
    assert says in call("forecast", model, "-", typed=typed, code=2)


def test_a_model_of_another_kind_says_which_command_is_for_it(call: Callable[..., str]) -> None:
    assert "call `statestream predict` instead" in call("forecast", "sentiment", "-", typed="y\n1\n", code=1)
    assert "call `statestream generate` instead" in call("predict", "antonyms", "-", typed="hot\n", code=1)
    assert "call `statestream run` instead" in call("predict", "sunspots", "-", typed="1\n", code=1)
    assert "cannot be read as one" in call("predict", "sentiment", "-", typed=b"\x93NUMPYx", code=2)


def test_sessions_one_by_one(call: Callable[..., str], address: str, tmp_path: Path) -> None:
    for id in ("one-1", "one-2", "two-1"):
        call("run", "sunspots", "--id", id, typed="1\n2\n")
    ids = [one["id"] for one in json.loads(call("sessions", "ls", address, "--id", "one", "--json"))]
    assert ids == ["one-1", "one-2"]
    out = call("sessions", "ls", address, "--limit", "1")
    assert "There are more: --page " in out
    more = call("sessions", "ls", address, "--limit", "1", "--page", out.split("--page ")[1].strip(), "--json")
    assert "one-1" not in more or "one-2" not in more
    assert json.loads(call("sessions", "show", "sunspots", "one-1", "--json"))["position"] == 2
    assert "position:         2" in call("sessions", "show", "sunspots", "one-1")
    file = str(tmp_path / "kept")
    assert "one-1" in call("sessions", "snapshot", "sunspots", "one-1", "-o", file)
    assert "position 2" in call("sessions", "restore", "sunspots", "copy", file)
    assert "cannot be written" in call("sessions", "snapshot", "sunspots", "one-1", "-o", f"{file}/x", code=1)
    call("sessions", "rm", "sunspots", "one-1", "one-2", "two-1", "copy")
    assert "SESSION_NOT_FOUND" in call("sessions", "rm", "sunspots", "one-1", code=1)
    (tmp_path / "bad").write_bytes(b"x")
    assert "SNAPSHOT_INVALID" in call("sessions", "restore", "sunspots", "x", str(tmp_path / "bad"), code=1)
    assert json.loads(call("sessions", address, "--model", "sunspots", "--id", "one", "--json")) == []


def test_a_terminal_obeys_no_name_of_a_caller(call: Callable[..., str], address: str) -> None:
    id = "bell\x1b[2J\nnext"
    with statestream.connect(address) as client, client.session("sunspots", id=id):
        pass
    for said in (
        call("sessions", address, "--id", "bell"),
        call("sessions", "show", "sunspots", id),
        call("sessions", "rm", "sunspots", id),
    ):
        assert "bell\\x1b[2J\\nnext" in said
        assert "\x1b" not in said


def test_models_come_and_go(call: Callable[..., str]) -> None:
    assert "not served any more" in call("unload", "tagger")
    assert "no model 'tagger' is served" in call("run", "tagger", typed="x", code=1)
    assert json.loads(call("load", "tagger", "--json"))["name"] == "tagger"


def test_what_is_misspelt_is_guessed(call: Callable[..., str]) -> None:
    assert "did you mean 'sunspots'?" in call("run", "sunspot", typed="1", code=1)
    for asked in (
        ("sessions", "rm", "sunspot", "x"),
        ("sessions", "show", "Sunspot", "x"),
        ("sessions", "snapshot", "sunpsots", "x"),
        ("sessions", "ls", "--model", "SUNSPOTS"),
        ("alias", "sunspot", "stable", "1"),
        ("load", "sunspot"),
        ("unload", "sunspot"),
        ("bench", "--model", "sunspot"),
    ):
        assert "did you mean 'sunspots'?" in call(*asked, code=1)
    for asked in (("sessions", "rm", "nothing", "x"), ("sessions", "rm", "sunspots", "x"), ("load", "sunspots", "7")):
        assert "did you mean" not in call(*asked, code=1)
    assert "did you mean `statestream sessions`?" in call("sesions", code=2)
    assert "`statestream --help` lists all" in call("qqq", code=2)
    assert "in Python, as in `with statestream.local(" in call("local", "models/", code=2)
    assert "--limit" in call("sessions", "ls", "--limt", "5", code=2)


def test_nobody_is_asked_for_a_path_that_is_not_there(call: Callable[..., str]) -> None:
    assert "does not exist (looked for in" in call("run", "models/sunspot", code=1)
    for command in (("run", "sunspots"), ("forecast", "sunspots"), ("predict", "sentiment")):
        said = call(*command, "past.cvs", code=2)
        assert (
            f"'past.cvs' does not exist. (Looked for in {Path.cwd()}.) Expected a file, or - for standard input."
            in said
        )


def test_where_nothing_answers_it_says_what_does(call: Callable[..., str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # It does not listen.
        said = call("run", "sunspots", "-a", f"127.0.0.1:{closed.getsockname()[1]}", "--timeout", "0.3", code=1)
    assert "`statestream serve MODELS` starts one, -a HOST:PORT says where another is" in said


def test_a_ctrl_c_before_the_command_is_there_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str, *_: object) -> None:
        if name == "statestream.command.group":
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "statestream.command.group")
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=find_spec), *sys.meta_path])
    with pytest.raises(SystemExit, match="Aborted!"):
        cli.main()


@pytest.mark.slow
def test_who_types_texts_sees_no_bar(address: str) -> None:
    """And Ctrl-C ends it."""
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "statestream.cli", "generate", "antonyms", "-a", address]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        command, stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True
    ) as process:
        os.close(inner)
        seen = b""
        while b"Ctrl-D ends" not in seen:
            seen += os.read(outer, 4096)
        os.write(outer, b"king\n")
        while b"queen" not in seen:
            seen += os.read(outer, 4096)
        process.send_signal(signal.SIGINT)
        seen += rest(outer)
    assert process.returncode == 1
    assert "texts" not in seen.decode()
    assert "Aborted" in seen.decode()
    assert "\x1b" not in seen.decode()


def test_help_is_short_and_long(call: Callable[..., str]) -> None:
    for args in ([], ["run"], ["sessions"], ["sessions", "ls"], ["models"]):
        assert call(*args, "-h") == call(*args, "--help")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_models(call: Callable[..., str], shell: str) -> None:
    assert "_STATESTREAM_COMPLETE" in call("completion", shell)
    if shell == "bash":
        for typed, found in (("run su", "sunspots"), ("train digits", "digits-cnn"), ("sess", "sessions")):
            assert completed(f"statestream {typed}") == f"plain,{found}\n"


def completed(typed: str) -> str:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_STATESTREAM_COMPLETE": "bash_complete"}
    return subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['statestream']; from statestream.cli import main; main()"],
        env={**os.environ, **words},
        capture_output=True,
        text=True,
    ).stdout


def test_a_file_gets_a_server_of_its_own(call: Callable[..., str], tmp_path: Path) -> None:
    file = models.write(tmp_path, "counter") / "counter" / "1" / "model.onnx"
    assert [row["y"] for row in rows(call("run", str(file), typed="1\n2\n"))] == [[1.0], [3.0]]
    assert "nowhere.onnx does not exist" in call("run", "nowhere.onnx", typed="1", code=1)


def test_who_reads_no_more_is_told_nothing(address: str) -> None:
    shown = f"printf '%s\\n' 1 2 3 | {sys.executable} -m statestream.cli run sunspots -a {address} | head -0"
    ran = subprocess.run(["bash", "-c", shown], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device here")
def test_a_full_disk_is_one_line(address: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "statestream.cli", "models", address]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (
        1,
        "Error: the output could not be written whole: No space left on device; make room\n",
    )


def test_a_port_that_is_taken_is_found_before_models_load(tmp_path: Path) -> None:
    """A file that is no model is then not looked at."""
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-m", "statestream.cli", "serve", str(tmp_path / "bad.onnx"), "--port", port, "--no-http",
             "--store", "memory"],
            capture_output=True,
            text=True,
        )  # fmt: skip
    assert ran.returncode == 1
    assert "the port is taken" in ran.stderr
    assert "bad.onnx" not in ran.stderr


def test_the_page_runs(address: str, tmp_path: Path) -> None:
    mine = "tests/test_command.py::test_the_page_runs"
    page = [block for block in blocks(ROOT / "docs" / "command.md") if runner(block) == mine]
    assert len(page) == 3
    (tmp_path / "models").symlink_to(EXAMPLES)
    # The console script, also where only the sources are installed.
    script = tmp_path / "statestream"
    script.write_text(f"#!{sys.executable}\nfrom statestream.cli import main\nmain()\n", "utf-8")
    script.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    lines = "".join(block.text for block in page).replace("sessions ls", f"sessions ls {address}")
    ran = subprocess.run(
        ["bash", "-euc", f"set -o pipefail\n{lines}"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "STATESTREAM_ADDRESS": address},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '{"text": "queen"}' in ran.stdout
    assert "serving tagger version 1" in ran.stdout


def test_the_fixture_of_the_page(tmp_path: Path) -> None:
    block = run_by("docs/command.md", "tests/test_command.py::test_the_fixture_of_the_page")
    (tmp_path / "models").symlink_to(EXAMPLES)
    (tmp_path / "conftest.py").write_text(block.text.splitlines()[0], "utf-8")
    (tmp_path / "test_it.py").write_text("\n".join(block.text.splitlines()[1:]), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_it.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
