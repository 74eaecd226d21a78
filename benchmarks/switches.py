"""What metrics, tokens, TLS and tracing cost: processor seconds of the server for a million steps, each off and on.

`python -m benchmarks.switches` starts a server with nothing switched on and one for each switch, on either edge, and
measures each switch's server right before or after the one without, by turns; all that is counted is the servers'
own processor time, so a busy machine disturbs it little. With --docs it writes its section of docs/benchmarks.md.
Callers are gRPC's C++ client (closed_loop.cc).
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import grpc
from rich.progress import track

from benchmarks import closed_loop, figures, models, page, processes
from benchmarks.closed_loop import Figure
from benchmarks.processes import Process
from statestream_server.access import tokens

EDGES: Final = ("h2", "grpcio")
CALLERS: Final = 64
"""Streams, or callers of one call at a time."""
LOADS: Final[Mapping[str, Callable[..., Figure]]] = {
    "64 streams, one step a message": closed_loop.streams,
    "unary Step, 64 callers": closed_loop.steps,
}
_TRIES: Final = 5
SCRAPES: Final = 1.0
"""Seconds between two looks at /metrics: Prometheus looks every 15 or 30."""


@dataclass(frozen=True)
class Switch:
    """Something that an operator switches on.

    Attributes:
        name: As the table has it.
        options: Of `statestream serve`.
        door: What callers need for it, as `closed_loop.closed_loop` takes it.
        environment: Variables of the server.
        scraped: The port that is asked for metrics all the while.
    """

    name: str
    options: tuple[str, ...] = ()
    door: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    scraped: int | None = None


OFF: Final = Switch("off")


def switches(folder: Path, edge: str, collector: int) -> list[Switch]:
    """All of them, for a server of its own each."""
    port = processes.free_port()
    secret, _ = tokens.new(folder / f"{edge}.toml", "acme", frozenset({tokens.STEP}), time.time() + 86_400)
    certificate, key = folder / "server.pem", folder / "server.key"
    if not certificate.exists():
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
    told = ("--tracing", "otlp")
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector}"}
    few = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    return [
        Switch("metrics, asked for each second", ("--http-port", str(port)), scraped=port),
        Switch("tokens", ("--tokens", str(folder / f"{edge}.toml")), {"TOKEN": secret}),
        Switch("TLS", ("--tls-certificate", str(certificate), "--tls-key", str(key)), {"ROOTS": str(certificate)}),
        Switch("tracing, a call or stream in a hundred", told, environment=traces | few),
        Switch("tracing, all", told, environment=traces),
    ]


@contextmanager
def collecting() -> Iterator[int]:
    """The port of a collector of traces that throws all of them away."""

    class Every(grpc.GenericRpcHandler):
        def service(self, _details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Every()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@contextmanager
def scraping(port: int | None) -> Iterator[None]:
    """Has /metrics read all the while."""
    if port is None:
        yield
        return
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(SCRAPES):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                answer.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cost(server: Process, switch: Switch, load: Callable[..., Figure], seconds: float) -> float:
    """Processor seconds of the server for a million steps."""
    for _ in range(_TRIES):
        with scraping(switch.scraped):
            found = load(server, CALLERS, seconds, switch.door)
        assert found.server is not None
        if found.server > 0:
            return 1e6 * found.server
    raise click.ClickException("this machine is too busy: what the callers said came too late, each time")


def measure(folder: Path, rounds: int, seconds: float, edges: tuple[str, ...], only: str) -> list[dict[str, Any]]:
    """Every switch on every edge with every load, beside the server without."""
    rows = []
    with ExitStack() as stack:
        collector = stack.enter_context(collecting())
        for edge in edges:
            chosen = [one for one in switches(folder, edge, collector) if only in one.name]
            with ExitStack() as servers:
                started = []
                for number, switch in enumerate([OFF, *chosen]):
                    store = folder / f"{edge}-{number}"
                    store.mkdir()
                    started.append(
                        servers.enter_context(
                            processes.statestream(
                                folder / "models", store, "--edge", edge, *switch.options,
                                environment=switch.environment,
                            )
                        )
                    )  # fmt: skip
                off, *others = started
                pairs: dict[tuple[int, str], list[tuple[float, float]]] = {}
                every = [*itertools.product(range(rounds), range(len(chosen)), LOADS)]
                for turn, place, name in track(every, f"measuring {edge}"):
                    on, load = (others[place], chosen[place]), LOADS[name]
                    order = [(off, OFF), on] if (turn + place) % 2 else [on, (off, OFF)]
                    found = {switch.name: cost(server, switch, load, seconds) for server, switch in order}
                    pairs.setdefault((place, name), []).append((found[OFF.name], found[on[1].name]))
            for (place, name), some in pairs.items():
                ratios = [with_it / without for without, with_it in some]
                rows.append(
                    {
                        "switch": chosen[place].name,
                        "edge": edge,
                        "load": name,
                        "off": _spread([without for without, _ in some]),
                        "on": _spread([with_it for _, with_it in some]),
                        "ratio": _spread(ratios),
                    }
                )
    names = [row["switch"] for row in rows]
    return sorted(rows, key=lambda row: names.index(row["switch"]))


def _spread(values: list[float]) -> list[float]:
    return [figures.rounded(each) for each in (median(values), min(values), max(values))]


@click.command()
@click.option("--rounds", default=9, show_default=True, help="Every pair is measured so often; medians count.")
@click.option("--seconds", default=1.5, show_default=True, help="How long each measurement takes.")
@click.option("--edge", "edges", multiple=True, default=EDGES, show_default=True, type=click.Choice(EDGES))
@click.option("--only", default="", help="Only switches whose name contains this.")
@click.option("--docs", is_flag=True, help="Writes the section of docs/benchmarks.md.")
def main(rounds: int, seconds: float, edges: tuple[str, ...], only: str, docs: bool) -> None:
    """Measures what metrics, tokens, TLS and tracing cost the server."""
    if docs and (only or set(edges) != set(EDGES)):
        raise click.UsageError("--docs writes whole runs only; leave out --only and --edge")
    if not closed_loop.built():
        raise click.ClickException("the callers need g++, pkg-config and libgrpc++-dev")
    with tempfile.TemporaryDirectory() as name:
        models.make(Path(name) / "models")
        found = measure(Path(name), rounds, seconds, edges, only)
    click.echo(page.switches(found))
    if docs:
        figures.update({"switches": found})
        page.write()


if __name__ == "__main__":
    main()
