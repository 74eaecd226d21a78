"""The command: tables, JSON, exit codes, and commands of other distributions."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, EntryPoints

import click
import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import statestream
from statestream import bench, cli
from tests.client.fake_server import Fake


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, args)
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
            EntryPoint("extra", "tests.client.test_cli:extra", cli.GROUP),
            EntryPoint("broken", "tests.client.nowhere:command", cli.GROUP),
        ]
    )
    monkeypatch.setattr(cli, "entry_points", lambda **params: points.select(**params))
    assert run("extra") == (0, "extra ran\n")
    code, out = run("--help")
    assert code == 0
    assert "An extra command." in out
    assert "broken: cannot be loaded" in out
    code, out = run("broken")
    assert code == 2
    assert "health" in run("--help")[1]
