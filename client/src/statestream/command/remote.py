"""The subcommands that ask a running server."""

from __future__ import annotations

import sys
import time

import click
import grpc
from rich.table import Table

import statestream
from statestream.arguments import parse_addresses
from statestream.calls import read_code
from statestream.command import bench as measuring
from statestream.command import charts, listing
from statestream.command.asking import (
    Seconds,
    as_options,
    ask,
    asks_server,
    console,
    plain,
    print_json,
    print_table,
    specs,
    told_tls,
)
from statestream.command.listing import Column

HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = 1
_STATUS = {0: "unknown", 1: "serving", 2: "not serving", 3: "service unknown"}


@click.command()
@asks_server
def models(address: str, as_json: bool, timeout: float) -> None:
    """List the models of a server. Exit code 1 if one of them failed to load."""
    found = ask(address, timeout, lambda client: client.models())
    named = any(model.aliases for model in found)
    if as_json:
        print_json([plain(model) for model in found])
    elif not found:
        click.echo("no model is served; put one where the server looks, or see `statestream load --help`")
    else:
        listing.show(
            console(),
            [
                Column("model", [model.name for model in found]),
                Column(
                    "version", [f"{model.version}{' *' if model.is_default else ''}" for model in found], whole=True
                ),
                *([Column("aliases", [", ".join(model.aliases) for model in found])] if named else []),
                Column("kind", [model.kind for model in found], whole=True),
                Column("inputs", [specs(model.signature.inputs) for model in found], leaves=2),
                Column("outputs", [specs(model.signature.outputs) for model in found], leaves=1),
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
@asks_server
def info(address: str, as_json: bool, timeout: float) -> None:
    """Show version, durability, device and limits of a server."""
    found = ask(address, timeout, lambda client: client.info())
    if as_json:
        print_json(plain(found))
        return
    table = Table(show_header=False)
    for name, value in plain(found).items():
        if name != "limits":
            table.add_row(name.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
    for name, value in plain(found)["limits"].items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    print_table(table)


@click.command()
@asks_server
def stats(address: str, as_json: bool, timeout: float) -> None:
    """Show what a server's engine did: its batches by size and wait, and why they were not larger."""
    found = ask(address, timeout, lambda client: client.statistics())
    if as_json:
        print_json(plain(found))
        return
    for chart in charts.statistics(found):
        print_table(chart)


@click.command()
@asks_server
@click.option("--free", default=None, metavar="NAME", help="Lets this one run again.")
def quarantine(address: str, as_json: bool, timeout: float, free: str | None) -> None:
    """Show the work that was running when servers died, and whether it is refused since."""
    if free is not None:
        found = [ask(address, timeout, lambda client: client.free_quarantined(free))]
    else:
        found = ask(address, timeout, lambda client: client.quarantine())
    if as_json:
        print_json([plain(one) for one in found])
        return
    if not found:
        click.echo("nothing: no server of this store died of what it ran")
        return
    listing.show(
        console(),
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
@asks_server
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), required=True, help="How many of them: 0.5 for half."
)
@click.option("--model", default=None, help="Only the sessions of this model.")
def move(address: str, as_json: bool, timeout: float, share: float, model: str | None) -> None:
    """Ask a server's clients to take a share of their sessions to other servers."""
    asked = ask(address, timeout, lambda client: client.move_sessions(share, model))
    if as_json:
        print_json(plain(asked))
    else:
        click.echo(f"asked for {asked.sessions:,} sessions of {asked.streams:,} streams")


@click.command()
@asks_server
@click.option("--service", default="", help="The service or model to ask about; the whole server if left out.")
def health(address: str, as_json: bool, timeout: float, service: str) -> None:
    """Ask a server for its health, by the standard gRPC protocol. Exit code 0 if it serves, else 1."""
    status, why = _health(address, timeout, service)
    if as_json:
        print_json({"address": address, "service": service, "status": status, "error": why})
    else:
        click.echo(f"{address}: {status}{': ' + why if why else ''}")
    sys.exit(0 if status == _STATUS[_SERVING] else 1)


@click.command()
@asks_server
@click.option("--model", default=None, help="The model to measure; the first that has sessions if left out.")
@click.option("--sessions", default=1024, show_default=True, type=click.IntRange(1), help="The largest batch.")
@click.option("--steps", default=1, show_default=True, type=click.IntRange(1), help="Steps of a session in one call.")
@click.option("--seconds", type=Seconds(), default=1.0, show_default=True, help="How long each batch is measured.")
def bench(
    address: str, as_json: bool, timeout: float, model: str | None, sessions: int, steps: int, seconds: float
) -> None:
    """Measure a server: throughput by batch, and how long single calls take. Its sessions are deleted again."""
    found = ask(
        address,
        timeout,
        lambda client: measuring.measure(
            client, measuring.choose(client.models(), model), most=sessions, steps=steps, seconds=seconds
        ),
    )
    if as_json:
        print_json(found.plain())
        return
    for chart in charts.measurement(found):
        print_table(chart)


def _channel(address: str) -> grpc.Channel:
    tls = told_tls()
    if not tls:
        return grpc.insecure_channel(address)
    given = tls.credentials() if isinstance(tls, statestream.Tls) else grpc.ssl_channel_credentials()
    return grpc.secure_channel(address, given)


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
    with _channel(first) as channel:
        check = channel.unary_unary(HEALTH, request_serializer=bytes, response_deserializer=bytes)
        try:
            response = check(request, timeout=timeout)
        except grpc.RpcError as error:
            return "no answer", as_options(read_code(error.code(), error.details() or "", first).message)
    return _STATUS.get(response[1] if len(response) > 1 and response[0] == 0x08 else 0, "unknown"), ""
