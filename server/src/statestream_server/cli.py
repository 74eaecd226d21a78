"""The server's command, `statestream serve`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from statestream_server import configuration, process
from statestream_server.flags import Retention, Seconds, option
from statestream_server.models.model import BatchPolicy
from statestream_server.models.proof.verdict import TrialLimits
from statestream_server.settings import Durability, Limits, Settings, StartError, threads_for
from statestream_server.stores import default_folder

_LIMITS, _TRIAL = Limits(), TrialLimits()
_PORT = click.IntRange(0, 65535)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_BYTES = click.IntRange(1 << 16, 1 << 30)
"""Of one message; gRPC and protobuf end at 2 GiB."""
_KEPT = click.IntRange(1 << 16, 512 << 20)
"""They are part of a record: SQLite takes less than 1 GB, Redis 512 MiB unless it is told otherwise."""


@click.command(cls=configuration.Configured)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), envvar="STATESTREAM_MODELS")
@configuration.option
@option(
    "--host",
    default="127.0.0.1",
    help="The address to listen on; one that other machines reach needs --tokens, --tls-clients or --insecure.",
)
@option(
    "--insecure",
    is_flag=True,
    default=False,
    help="Listen where other machines reach it and nobody is asked who they are: only in a network that you trust.",
)
@option("--port", type=_PORT, default=8001, help="gRPC; 0 for any free port.")
@option(
    "--edge",
    type=click.Choice(["grpcio", "h2"]),
    default="grpcio",
    help="What is under gRPC: the library grpcio, or HTTP/2 on the server's own loop, faster for calls of one step.",
)
@option("--unix", default="", help="A Unix socket where gRPC is spoken, too, without TLS.")
@option(
    "--tls-certificate", type=_FILE, help="PEM of the server's certificate and what signed it: gRPC is in TLS then."
)
@option("--tls-key", type=_FILE, help="PEM of the certificate's key.")
@option("--tls-clients", type=_FILE, help="PEM of authorities; callers without a certificate of theirs are refused.")
@option(
    "--http-tls/--no-http-tls",
    default=False,
    help="Whether the HTTP port is in TLS too: with the same certificate, and asking for the same of its callers.",
)
@option(
    "--tokens",
    type=_FILE,
    help="The file of tokens, which `statestream token` writes: who shows none of them is refused. It is read again"
    " when it changes.",
)
@option("--http-port", type=_PORT, default=8002, help="Metrics over HTTP; 0 for any free port.")
@option("--http/--no-http", default=True, help="Whether metrics are served over HTTP.")
@option(
    "--console/--no-console",
    default=None,
    help="Whether the HTTP port has the console, a page to look at models and sessions. Default: where only this"
    " machine reaches it, or callers need a token.",
)
@option("--advertise", default="", help="HOST:PORT where this server is reached; default: its host and port.")
@option("--workers", type=click.IntRange(1), default=1, help="Processes that share ports, store and models.")
@option("--store", default="sqlite", help="memory, sqlite, sqlite:PATH or redis://HOST:PORT.")
@option(
    "--durability",
    type=click.Choice([mode.name.lower() for mode in Durability]),
    help="When steps become durable: never, once an interval, or before the reply leaves."
    " Default: none for the memory store, else interval.",
)
@option("--checkpoint-interval", type=Seconds(0.01), default=1.0, help="Seconds between checkpoints.")
@option("--device", default="auto", help="Where models run: auto (CUDA if it runs, else the CPU), cpu, cuda or cuda:N.")
@option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    help="Processors that one run of a model may use; 0 for two, or one where there are not two for each worker.",
)
@option(
    "--batch-policy",
    type=click.Choice(["pad", "warn", "serialise"]),
    default="pad",
    help="What becomes of a model that answers in other bits alone than in a batch: a batch of one runs as two where"
    " that mends it, else calls of Predict run alone (pad); it is told only (warn); every row runs alone (serialise).",
)
@option("--drain-grace", type=Seconds(0), default=10.0, help="Seconds that a stop may take at most.")
@option(
    "--rebalance/--no-rebalance",
    default=True,
    help="Whether streams are asked to move when another server over the same store comes, so that it has its share.",
)
@option(
    "--hibernate-after",
    type=Seconds(1),
    default=900.0,
    help="Seconds without a step after which a session leaves memory.",
)
@option(
    "--retention",
    type=Retention(),
    multiple=True,
    default=["0"],
    help="Seconds that an unused session is kept in the store, 0 for ever; MODEL=SECONDS for the sessions of one model."
    " May be said again.",
)
@option(
    "--max-sessions",
    type=click.IntRange(1),
    default=_LIMITS.max_sessions,
    help="The most sessions of one model in memory; idle ones make room.",
)
@option(
    "--max-queued-bytes",
    type=click.IntRange(1),
    default=_LIMITS.max_queued_bytes,
    help="The most bytes of inputs that wait to run.",
)
@option(
    "--tenant-metrics/--no-tenant-metrics",
    default=False,
    help="Whether metrics tell the tenants of the file of tokens apart, 64 at most; who reads them sees their names.",
)
@option(
    "--max-connections",
    type=click.IntRange(1),
    default=10_000,
    help="The most connections of the gRPC port, in each worker; further ones are refused.",
)
@option(
    "--max-http-connections",
    type=click.IntRange(1),
    default=128,
    help="The most connections of the HTTP port; one that has no request under way makes room for a new one.",
)
@option(
    "--quarantine",
    default="",
    help="The folder where what runs is noted, so that what ended a server twice is not run again; none for none."
    " Default: beside the sqlite store, else in the user's state folder.",
)
@option(
    "--load-timeout",
    type=Seconds(0.1),
    default=_TRIAL.seconds,
    help="Seconds that trying one model may take before it is given up, and one more for every 64 MiB of its files.",
)
@option(
    "--load-memory",
    type=click.IntRange(64),
    default=_TRIAL.megabytes,
    help="MiB that trying one model may take, and eight more for every MiB of its files.",
)
@option("--max-message-bytes", type=_BYTES, default=_LIMITS.max_message_bytes, help="The most bytes of one request.")
@option(
    "--max-answer-bytes",
    type=_BYTES,
    default=_LIMITS.max_answer_bytes,
    help="The most bytes of outputs in one answer; what would be larger is refused and changes nothing.",
)
@option(
    "--max-kept-bytes",
    type=_KEPT,
    default=_LIMITS.max_kept_bytes,
    help="The most bytes of outputs that are kept for one session until its caller has acknowledged them.",
)
@option(
    "--reader-timeout",
    type=Seconds(0.1),
    default=20.0,
    help="Seconds that an answer waits for a caller who does not read; then its call or stream ends.",
)
@option(
    "--allow-empty",
    is_flag=True,
    default=False,
    help="Start although there is nothing to serve yet: models are put there later.",
)
@option(
    "--watch/--no-watch",
    default=None,
    help="Whether new models and versions are loaded as they appear. Default: where they lie on this machine.",
)
@option(
    "--proof-cache/--no-proof-cache",
    default=True,
    help="Whether what trials of models found is kept beside the store, so that the next start tries none again.",
)
@option(
    "--trust",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of SHA-256, as sha256sum writes it: models and weights that are not in it are not loaded.",
)
@option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", help="How much to tell."
)
@option(
    "--tracing",
    type=click.Choice(["off", "otlp", "console"]),
    default="off",
    help="Where spans of calls, frames and batches go; needs the extra [tracing], and OTEL_… variables say more.",
)
@option("--log-format", type=click.Choice(["text", "json"]), default="text", help="What a line of the log is.")
@option(
    "--slow-step",
    type=Seconds(0),
    default=1.0,
    help="Seconds after which a line tells of a slow batch, or checkpoint, and of why; 0 for never.",
)
@click.pass_context
def serve(context: click.Context, /, **flags: Any) -> None:
    """Serves models over gRPC.

    MODELS are .onnx files, and folders that hold NAME.onnx, NAME/model.onnx or NAME/VERSION/model.onnx; a pair is an
    encoder.onnx and a decoder.onnx in place of model.onnx. A file is served as version 1 of its name, model.onnx under
    that of its folder.
    """
    settings, workers, log_level = settings_of(**flags)

    def reread() -> tuple[Settings, str]:
        try:
            fresh, count, level = settings_of(**serve.make_context("serve", [*context.obj]).params)
        except click.ClickException as error:
            raise StartError(error.format_message()) from error
        if count != workers:
            raise StartError(f"workers is {count}, and {workers} run: restart the server, or put it back")
        return fresh, level

    try:
        if workers > 1:
            from statestream_server.workers import parent

            raise SystemExit(parent.run(settings, workers, log_level, reread))
        process.run(settings, log_level, reread=reread)
    except (StartError, ImportError, OSError) as error:
        raise click.ClickException(str(error)) from error


def settings_of(
    *,
    models: tuple[Path, ...],
    http: bool,
    http_port: int,
    workers: int,
    store: str,
    durability: str | None,
    threads: int,
    batch_policy: str,
    quarantine: str,
    load_timeout: float,
    load_memory: int,
    proof_cache: bool,
    retention: tuple[tuple[str, float], ...],
    log_level: str,
    **flags: Any,
) -> tuple[Settings, int, str]:
    """What the flags say: settings, workers, and the level of the log."""
    mode = Durability[(durability or ("none" if store == "memory" else "interval")).upper()]
    if store == "memory" and mode != Durability.NONE:
        raise click.ClickException("the memory store keeps nothing over a restart: only --durability none fits it")
    limits = {name: flags.pop(name) for name in [*flags] if hasattr(_LIMITS, name)}
    settings = Settings(
        models,
        http_port=http_port if http else None,
        store=store,
        durability=mode,
        batch_policy=BatchPolicy(batch_policy),
        threads=threads or threads_for(workers),
        quarantine=None if quarantine == "none" else Path(quarantine) if quarantine else default_folder(store),
        proofs=default_folder(store, "proofs") if proof_cache else None,
        trial=TrialLimits(load_timeout, load_memory),
        retention=dict(retention).get("", 0.0),
        model_retention={model: seconds for model, seconds in retention if model},
        limits=dataclasses.replace(_LIMITS, **limits),
        **flags,
    )
    if workers > 1 and settings.unix:
        raise click.ClickException("a Unix socket is one process', and --workers are several: leave one of them out")
    if workers > 1 and store == "memory":
        raise click.ClickException("workers share sessions through the store, and the memory store is each one's own")
    return settings, workers, log_level
