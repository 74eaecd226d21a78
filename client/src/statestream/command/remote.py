"""The subcommands that ask a running server."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

import statestream
from statestream.arguments import parse_addresses
from statestream.command import bench as measuring
from statestream.command import charts, listing
from statestream.command.listing import Column
from statestream.contract.errors import StatestreamError

HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = 1
_STATUS = {0: "unknown", 1: "serving", 2: "not serving", 3: "service unknown"}


class Seconds(click.FloatRange):
    """Seconds, more than 0; the base class lets NaN through, which no comparison refuses."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A finite number of them."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds", param, ctx)
        return seconds


def _asks_server(function: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that all commands about a running server share."""
    function = click.option(
        "--timeout", type=Seconds(), default=5.0, show_default=True, help="Seconds to wait for an answer."
    )(function)
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)
    return click.argument("address", default="localhost:8001")(function)


def _ask(address: str, timeout: float, question: Callable[[statestream.Client], Any]) -> Any:
    """Asks a server; an error is one line and exit code 1."""
    try:
        with statestream.connect(address, connect_timeout=timeout, retry_timeout=timeout) as client:
            return question(client)
    except StatestreamError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@click.command()
@_asks_server
def models(address: str, as_json: bool, timeout: float) -> None:
    """List the models of a server. Exit code 1 if one of them failed to load."""
    found = _ask(address, timeout, lambda client: client.models())
    if as_json:
        _print_json([_plain(model) for model in found])
    else:
        listing.show(
            _console(),
            [
                Column("model", [model.name for model in found]),
                Column(
                    "version", [f"{model.version}{' *' if model.is_default else ''}" for model in found], whole=True
                ),
                Column("kind", [model.kind for model in found], whole=True),
                Column("inputs", [_specs(model.signature.inputs) for model in found], leaves=2),
                Column("outputs", [_specs(model.signature.outputs) for model in found], leaves=1),
                Column("sessions", [f"{model.resident_sessions:,}" for model in found], whole=True),
                Column("batch", [model.batch_invariance for model in found], whole=True, leaves=3),
                Column(
                    "about",
                    [model.error or _about(model) for model in found],
                    alarms=[bool(model.error) for model in found],
                ),
            ],
        )
    if any(model.error for model in found):
        sys.exit(1)


def _about(model: statestream.Model) -> str:
    """A model's own sentence, and how it was quantised."""
    dtype = model.signature.quantization.dtype
    return f"{model.description} ({dtype})".strip() if dtype else model.description


@click.command()
@_asks_server
@click.option("--model", default=None, help="Only the sessions of this model.")
def sessions(address: str, as_json: bool, timeout: float, model: str | None) -> None:
    """List the sessions of a server."""
    found = _ask(address, timeout, lambda client: list(client.list_sessions(model)))
    if as_json:
        _print_json([_plain(session) for session in found])
        return
    listing.show(
        _console(),
        [
            Column("model", [one.model for one in found]),
            Column("version", [str(one.version) for one in found], whole=True, leaves=4),
            Column("session", [one.id + (" (ephemeral)" if one.ephemeral else "") for one in found]),
            Column("position", [f"{one.position:,}" for one in found], whole=True),
            Column("durable", [f"{one.durable_position:,}" for one in found], whole=True),
            Column("epoch", [str(one.epoch) for one in found], whole=True, leaves=1),
            Column("where", [one.residence for one in found], whole=True, leaves=3),
            Column(
                "last used",
                [one.last_used.strftime("%Y-%m-%d %H:%M:%S UTC") if one.last_used else "" for one in found],
                whole=True,
                leaves=2,
            ),
        ],
    )


@click.command()
@_asks_server
def info(address: str, as_json: bool, timeout: float) -> None:
    """Show version, durability, device and limits of a server."""
    found = _ask(address, timeout, lambda client: client.info())
    if as_json:
        _print_json(_plain(found))
        return
    table = Table(show_header=False)
    for name, value in _plain(found).items():
        if name != "limits":
            table.add_row(name.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
    for name, value in _plain(found)["limits"].items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    _print(table)


@click.command()
@_asks_server
def stats(address: str, as_json: bool, timeout: float) -> None:
    """Show what a server's engine did: its batches by size and wait, and why they were not larger."""
    found = _ask(address, timeout, lambda client: client.statistics())
    if as_json:
        _print_json(_plain(found))
        return
    for chart in charts.statistics(found):
        _print(chart)


@click.command()
@_asks_server
@click.option("--free", default=None, metavar="NAME", help="Lets this one run again.")
def quarantine(address: str, as_json: bool, timeout: float, free: str | None) -> None:
    """Show the work that was running when servers died, and whether it is refused since."""
    if free is not None:
        found = [_ask(address, timeout, lambda client: client.free_quarantined(free))]
    else:
        found = _ask(address, timeout, lambda client: client.quarantine())
    if as_json:
        _print_json([_plain(one) for one in found])
        return
    listing.show(
        _console(),
        [
            Column("deaths", [str(one.deaths) for one in found], whole=True),
            Column("crashes", [str(one.crashes) for one in found], whole=True, leaves=1),
            Column("since", [time.strftime("%Y-%m-%d %H:%M", time.localtime(one.since)) for one in found], leaves=2),
            Column("is", ["freed" if free else "refused" if one.quarantined else "runs apart" for one in found]),
            Column("what", [one.what or "one of many" for one in found]),
            Column("name", [one.name for one in found], whole=True),
        ],
    )


@click.command()
@_asks_server
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), required=True, help="How many of them: 0.5 for half."
)
@click.option("--model", default=None, help="Only the sessions of this model.")
def move(address: str, as_json: bool, timeout: float, share: float, model: str | None) -> None:
    """Ask a server's clients to take a share of their sessions to other servers."""
    asked = _ask(address, timeout, lambda client: client.move_sessions(share, model))
    if as_json:
        _print_json(_plain(asked))
    else:
        click.echo(f"asked for {asked.sessions:,} sessions of {asked.streams:,} streams")


@click.command()
@_asks_server
@click.option("--service", default="", help="The service or model to ask about; the whole server if left out.")
def health(address: str, as_json: bool, timeout: float, service: str) -> None:
    """Ask a server for its health, by the standard gRPC protocol. Exit code 0 if it serves, else 1."""
    status, why = _health(address, timeout, service)
    if as_json:
        _print_json({"address": address, "service": service, "status": status, "error": why})
    else:
        click.echo(f"{address}: {status}{': ' + why if why else ''}")
    sys.exit(0 if status == _STATUS[_SERVING] else 1)


@click.command()
@_asks_server
@click.option("--model", default=None, help="The model to measure; the first that has sessions if left out.")
@click.option("--sessions", default=1024, show_default=True, type=click.IntRange(1), help="The largest batch.")
@click.option("--steps", default=1, show_default=True, type=click.IntRange(1), help="Steps of a session in one call.")
@click.option("--seconds", type=Seconds(), default=1.0, show_default=True, help="How long each batch is measured.")
def bench(
    address: str, as_json: bool, timeout: float, model: str | None, sessions: int, steps: int, seconds: float
) -> None:
    """Measure a server: throughput by batch, and how long single calls take. Its sessions are deleted again."""
    found = _ask(
        address,
        timeout,
        lambda client: measuring.measure(
            client, measuring.choose(client.models(), model), most=sessions, steps=steps, seconds=seconds
        ),
    )
    if as_json:
        _print_json(found.plain())
        return
    for chart in charts.measurement(found):
        _print(chart)


def _health(address: str, timeout: float, service: str) -> tuple[str, str]:
    # The two messages of the protocol have one field each, so that they are written here in place of
    # a dependency: a request is {string service = 1}, a response {enum status = 1}.
    name = service.encode()
    if len(name) > 127:
        raise click.UsageError(f"service has {len(name)} bytes; expected at most 127")
    request = bytes([0x0A, len(name)]) + name if name else b""
    try:
        first, *_ = parse_addresses(address)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with grpc.insecure_channel(first) as channel:
        check = channel.unary_unary(HEALTH, request_serializer=bytes, response_deserializer=bytes)
        try:
            response = check(request, timeout=timeout)
        except grpc.RpcError as error:
            return "no answer", f"{error.code().name}: {error.details()}"
    return _STATUS.get(response[1] if len(response) > 1 and response[0] == 0x08 else 0, "unknown"), ""


def _console() -> Console:
    # Without a terminal there is no width to keep to, and whoever reads wants whole names.
    console = Console()
    return console if console.is_terminal else Console(width=240)


def _print(table: Table) -> None:
    _console().print(table)


def _specs(specs: Any) -> str:
    return ", ".join(
        f"{spec.name} {spec.dtype}[{','.join('?' if size < 0 else str(size) for size in spec.shape)}]" for spec in specs
    )


def _plain(value: Any) -> Any:
    """A view as JSON values; a signature as its specs."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Message):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else value


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
