"""The command: tables, JSON, exit codes, and commands of other distributions."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import click
import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import statestream
from statestream.command import bench, group, lines, listing, managing
from statestream.command.asking import as_options
from tests.client.fake_server import Fake


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(group.main, args)
    return result.exit_code, result.output


def test_models_sessions_and_info_print_tables_and_json(fake: Fake) -> None:
    with statestream.connect(fake.address) as client:
        client.session("sum", "station-7").step([1, 2])
        code, out = run("models", fake.address)
        assert code == 0
        assert "double" in out
        code, out = run("sessions", fake.address, "--json")
        assert (code, json.loads(out)[0]["id"], json.loads(out)[0]["position"]) == (0, "station-7", 1)
        assert "station-7" in run("sessions", fake.address)[1]
        code, out = run("info", fake.address, "--json")
        assert (code, json.loads(out)["durability"]) == (0, "interval")
        assert "interval" in run("info", fake.address)[1]
        names = [model["name"] for model in json.loads(run("models", fake.address, "--json")[1])]
        assert names == ["sum", "double", "upper"]


def test_stats_prints_why_batches_were_not_larger(fake: Fake) -> None:
    code, out = run("stats", fake.address, "--json")
    found = json.loads(out)
    assert (code, found["reasons"], found["classes"]) == (0, {"all": 1, "time": 2}, {"live": [3, 0.5]})
    code, out = run("stats", fake.address)
    assert code == 0
    assert "more would have taken too long" in out
    assert "23.3" in out, "rows a batch"
    assert "64" in out


def test_bench_measures_and_leaves_no_session(fake: Fake) -> None:
    code, out = run("bench", fake.address, "--sessions", "6", "--steps", "2", "--seconds", "0.02", "--json")
    found = json.loads(out)
    assert (code, found["model"], found["unit"]) == (0, "sum", "steps")
    assert [rate["batch"] for rate in found["rates"]] == [1, 4, 6]
    assert all(rate["calls"] > 0 and rate["a_second"] > 0 for rate in found["rates"])
    assert found["milliseconds"]["p50"] <= found["milliseconds"]["p99"]
    assert json.loads(run("sessions", fake.address, "--json")[1]) == []
    code, out = run("bench", fake.address, "--model", "double", "--sessions", "4", "--seconds", "0.02")
    assert code == 0
    assert "items/s" in out
    assert "█" in out
    code, out = run("bench", fake.address, "--model", "nowhere")
    assert "no model 'nowhere' is served; served: " in out
    assert (code, "nowhere" in out) == (1, True)
    assert run("bench", fake.address, "--model", "upper")[0] == 1


def test_bins_hold_every_call(fake: Fake) -> None:
    counts = bench.histogram([0.001, 0.0011, 0.004])
    assert sum(count for _, count in counts) == 3
    assert [low for low, _ in counts] == sorted(low for low, _ in counts)
    assert counts[0][0] <= 0.001
    assert counts[-1][0] <= 0.004


def test_a_model_that_failed_to_load_is_exit_code_1(fake: Fake) -> None:
    fake.models["double"].error = "no such op"
    code, out = run("models", fake.address, "--json")
    assert code == 1
    assert "no such op" in out


def test_no_server_is_one_line_and_exit_code_1() -> None:
    code, out = run("models", "localhost:1", "--timeout", "0.3")
    assert code == 1
    assert out.startswith("Error: SERVER_UNAVAILABLE")
    assert len(out.strip().splitlines()) == 1
    assert run("models", "nowhere")[0] == 2


def test_health_speaks_the_standard_protocol() -> None:
    from concurrent.futures import ThreadPoolExecutor

    servicer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        servicer.set("sum", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert run("health", f"localhost:{port}") == (0, f"localhost:{port}: serving\n")
        code, out = run("health", f"localhost:{port}", "--service", "sum", "--json")
        assert (code, json.loads(out)["status"]) == (1, "not serving")
        assert run("health", f"localhost:{port}", "--service", "other")[0] == 1
    finally:
        server.stop(0).wait()
    code, out = run("health", f"localhost:{port}", "--timeout", "0.5")
    assert code == 1
    assert "no answer" in out


@click.command()
def extra() -> None:
    """An extra command."""
    click.echo("extra ran")


def test_other_distributions_add_commands_and_a_broken_one_costs_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint("extra", "tests.client.test_cli:extra", group.GROUP),
            EntryPoint("broken", "tests.client.nowhere:command", group.GROUP),
        ]
    )
    monkeypatch.setattr(group, "entry_points", lambda **params: points.select(**params))
    assert run("extra") == (0, "extra ran\n")
    assert "An extra command." in run("extra", "--help")[1]
    code, out = run("--help")
    assert code == 0
    assert "extra       Comes with tests.client.test_cli." in out, "the list waits for nobody's import"
    assert "health" in out
    code, out = run("broken")
    assert (code, len(out.splitlines())) == (2, 1)
    assert "broken cannot be loaded from tests.client.nowhere:command" in out


NUMBERS = st.integers(0, 10**12).map(lambda number: f"{number:,}")


@given(
    st.lists(st.tuples(st.text("ab[]é", max_size=40), NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=3),
    st.integers(20, 200),
)
def test_a_list_never_cuts_a_number(rows: list[tuple[str, str, str, str]], width: int) -> None:
    names, first, second, third = (list(column) for column in zip(*rows, strict=True))
    columns = [
        listing.Column("session", names),
        listing.Column("position", first, whole=True),
        listing.Column("durable", second, whole=True),
        listing.Column("epoch", third, whole=True, leaves=1),
    ]
    console = Console(width=width, file=io.StringIO(), color_system=None)
    listing.show(console, columns)
    assert isinstance(console.file, io.StringIO)
    out = console.file.getvalue()
    shown = sorted(re.findall(r"[\d,]+\d|\d", out))
    kept = [*first, *second, *(third if "epoch" in out.splitlines()[1] or out.startswith("session:") else [])]
    assert shown == sorted(kept)
    assert ("without epoch" in out) == (len(kept) < 3 * len(rows))


def test_ids_fold_on_a_narrow_terminal_and_numbers_stay(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managing, "console", lambda: Console(width=80))
    with statestream.connect(fake.address) as client:
        with client.session("sum", "station-" * 12) as session:
            session.step([[1, 2]] * 10)
            session.flush()
        out = run("sessions", fake.address)[1]
    assert max(map(len, out.splitlines())) <= 80
    assert out.count(" 10 ") == 2


@pytest.mark.parametrize(
    ("command", "package"),
    [("serve", "statestream-server[cpu]"), ("inspect", "statestream-server[cpu]"), ("train", "statestream-export")],
)
def test_a_command_of_a_package_that_is_not_installed_names_it(
    monkeypatch: pytest.MonkeyPatch, command: str, package: str
) -> None:
    monkeypatch.setattr(group, "entry_points", lambda **_: EntryPoints([]))
    code, out = run(command, "models/")
    assert code == 2
    assert f"pip install '{package}'" in out
    assert "No such command 'nonsense'" in run("nonsense")[1]


@pytest.mark.parametrize("name", [*group.OWN, *group.ELSEWHERE])
def test_the_list_says_of_each_what_its_own_help_says(name: str) -> None:
    with click.Context(group.main) as context:
        shown = group.main.get_command(context, name)
    assert isinstance(shown, group.Deferred)
    assert shown.get_short_help_str(200) == shown.load().get_short_help_str(200)


HEAVY = "torch numpy grpc onnxruntime onnx matplotlib pandas narwhals sklearn rich google.protobuf".split()


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_waits_for_nothing(argument: str) -> None:
    script = (
        "import sys; from statestream.command.group import main; main([sys.argv[1]], standalone_mode=False);"
        f"print([name for name in {HEAVY} if name in sys.modules], len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=True)
    assert argument == "--version" or "train" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("[] ")


def test_the_client_itself_needs_no_library_of_the_command() -> None:
    script = (
        "import sys, statestream; statestream.connect, statestream.aio; print({'click', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("command", ["models", "sessions", "info", "stats"])
def test_an_address_comes_as_an_argument_an_option_or_from_the_environment(
    command: str, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATESTREAM_ADDRESS", "localhost:1")
    wanted = run(command, fake.address)
    assert wanted[0] == 0, wanted[1]
    assert run(command, "-a", fake.address) == wanted
    code, out = run(command, "localhost:2", "--address", fake.address)
    assert (code, f"two addresses came, localhost:2 and {fake.address}" in out) == (2, True)
    monkeypatch.setenv("STATESTREAM_ADDRESS", fake.address)
    assert run(command) == wanted


def test_an_empty_list_says_so(fake: Fake) -> None:
    assert run("sessions", fake.address) == (0, "no sessions\n")
    assert run("sessions", fake.address, "--model", "sum") == (0, "no session is so\n")
    assert json.loads(run("sessions", fake.address, "--json")[1]) == []
    fake.models.clear()
    assert "no model is served" in run("models", fake.address)[1]


def test_hints_are_in_the_words_of_the_command(fake: Fake) -> None:
    code, out = run("models", fake.address, "--tls", "--timeout", "0.5")
    assert code == 1
    assert "leave --tls out" in out
    code, out = run("health", fake.address, "--tls", "--timeout", "0.5")
    assert (code, "leave --tls out" in out) == (1, True)
    for python in ("Does it want TLS (tls=True)", "tls=statestream.Tls(roots=…) names one"):
        assert "tls=" not in as_options(python)


def test_the_core_of_grpc_writes_nothing_beside_the_error(fake: Fake) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "statestream.cli", "models", fake.address, "--tls", "--timeout", "0.3"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr


def test_without_its_libraries_the_command_says_in_a_line_what_to_install() -> None:
    script = (
        "import importlib.util as util; found = util.find_spec;"
        "util.find_spec = lambda name: None if name == 'click' else found(name);"
        "from statestream.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "statestream: the command needs click: pip install 'statestream[cli]'\n"


@pytest.mark.parametrize("command", ["models", "sessions", "info", "stats", "health", "bench"])
def test_wrong_addresses_and_times_are_told(command: str) -> None:
    for address in ("nowhere", "http://localhost:8001"):
        code, out = run(command, address)
        assert code == 2
        assert "expected 'host:port'" in out
    for value in ("0", "-1", "nan", "inf", "x"):
        code, out = run(command, "localhost:1", "--timeout", value)
        assert code == 2
        assert "Invalid value for '--timeout'" in out


def test_a_header_of_a_model_without_names_is_told(fake: Fake) -> None:
    with statestream.connect(fake.address) as client:
        model = next(model for model in client.models() if model.name == "sum")
    with pytest.raises(
        lines.LineError, match="'a' is no number; expected 2 numbers, and no header, as the model has no"
    ):
        lines.Reader(model)("a,b")
    with pytest.raises(lines.LineError, match="'b' is no number; expected 2 numbers$"):
        lines.Reader(model)("1,b")
