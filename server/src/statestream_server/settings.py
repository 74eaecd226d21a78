"""Limits and settings as small comparable values; where they come from is the command line's business."""

from __future__ import annotations

import enum
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from statestream_server.models.files import repository
from statestream_server.models.model import BatchPolicy
from statestream_server.models.proof.verdict import TrialLimits

_MOST_THREADS: Final = 2
"""More help a large batch and hold a small one up, because each is woken for it."""


ANSWER_OVERHEAD: Final = 1 << 20
"""What a message may have beside its outputs."""


class StartError(Exception):
    """The server cannot start: one line with the reason and what to do."""


class Durability(enum.IntEnum):
    """How steps become durable; numbers as on the wire."""

    NONE = 1
    INTERVAL = 2
    SYNC = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server takes."""

    max_chunk_steps: int = 256
    max_message_bytes: int = 16 << 20
    max_unacknowledged_chunks: int = 256
    max_sessions: int = 1_000_000
    max_queued_bytes: int = 256 << 20
    max_horizon: int = 4096
    max_window_bytes: int = 64 << 20
    max_frame_chunks: int = 1 << 18
    max_frame_sessions: int = 1 << 15
    max_name_bytes: int = 1024
    max_text_symbols: int = 4096
    max_forecast_series: int = 1 << 15
    max_driven_rows: int = 1 << 17
    max_replies_bytes: int = 1 << 30
    max_answer_bytes: int = 64 << 20
    max_kept_bytes: int = 64 << 20
    max_forecast_samples: int = 10_000
    max_generate_sources: int = 1 << 12
    max_beams: int = 64
    max_frame_calls: int = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """How one server process runs.

    Attributes:
        models: Where models lie: files, and folders of them; see `repository.scan`.
        host: The address that gRPC and HTTP listen on.
        insecure: Whether others than this machine may reach it there: it asks nobody who they are.
        port: gRPC; 0 for any free one.
        edge: What is under gRPC's methods: grpcio, or h2 for HTTP/2 of our own.
        unix: The path of a Unix socket where gRPC is spoken, too; "" for none.
        only_unix: Whether it is spoken there alone, and no port is taken.
        tls_certificate: PEM of the server's certificate and what signed it; None for a port without TLS.
        tls_key: PEM of its key.
        tls_clients: PEM of the authorities whose certificates callers must have; None where anybody may call.
        http_tls: Whether the HTTP port is in TLS too, with the same certificate, and asks for the same of callers.
        tokens: The file of tokens that callers must show one of; None where anybody may call.
        http_port: Health, metrics and the Open Inference Protocol; 0 for any free one, None for none.
        http_unix: The path of a Unix socket where the first process of several asks this one over HTTP, "" for none.
        console: Whether the HTTP port has the console; None for where this machine alone, or who has a token, comes.
        store: Where sessions survive: memory, sqlite, sqlite:PATH, redis://….
        durability: How steps become durable.
        checkpoint_interval: Seconds between checkpoints in interval mode.
        device: Where models run: auto, cpu, cuda or cuda:N.
        threads: Processors that one run of a model may use; 0 for two, or one where there are not two for each process.
        batch_policy: What becomes of a model that is not batch-invariant: pad, warn or serialise.
        drain_grace: Seconds that a stop may take at most.
        rebalance: Whether streams are asked to move when another server comes, so that it has its share.
        hibernate_after: Seconds without a step after which a session leaves memory for the store.
        retention: Seconds that a session is kept in the store without use; 0 for ever.
        model_retention: The same for the sessions of some models, by name.
        ephemeral_retention: Seconds that a session which ends with its caller is kept without one.
        tombstone_retention: Seconds that the store remembers a deleted session, so that nothing late brings it back.
        reuse_port: Whether other processes of this server listen on the same port.
        advertise: HOST:PORT where other processes and callers reach this one; "" for host and port.
        quarantine: The folder where what runs is noted, for the server after this one; None for none.
        reader_timeout: Seconds that an answer waits for its reader; then the call or the stream ends.
        allow_empty: Whether it serves although nothing can be served yet.
        watch: Whether what appears among the models is loaded while it runs; None for where they lie on this machine.
        proofs: The folder where verdicts of trials are kept for the next start; None for none.
        trust: The file that lists what may be loaded; None where anything may.
        tracing: Where spans of calls and batches go: off, otlp (OTEL_ variables say where), or console.
        log_format: What a line of the log is: text or json.
        slow_step: Seconds after which a step, or a checkpoint, is worth a line; 0 for never.
        tenant_metrics: Whether metrics tell tenants apart, which names them to whoever reads the metrics.
        max_connections: The most connections of the gRPC port; further ones are refused.
        max_http_connections: Those of the HTTP port; one that is silent makes room for a new one.
        limits: What the server takes.
        trial: What trying one model before it serves may take.
    """

    models: tuple[Path, ...]
    host: str = "127.0.0.1"
    port: int = 8001
    edge: str = "grpcio"
    unix: str = ""
    only_unix: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_clients: Path | None = None
    http_tls: bool = False
    tokens: Path | None = None
    http_port: int | None = 8002
    http_unix: str = ""
    console: bool | None = None
    store: str = "sqlite"
    durability: Durability = Durability.INTERVAL
    checkpoint_interval: float = 1.0
    device: str = "auto"
    batch_policy: BatchPolicy = BatchPolicy.PAD
    drain_grace: float = 10.0
    rebalance: bool = True
    hibernate_after: float = 900.0
    retention: float = 0.0
    model_retention: Mapping[str, float] = field(default_factory=dict)
    ephemeral_retention: float = 300.0
    tombstone_retention: float = 3600.0
    threads: int = 0
    insecure: bool = False
    reuse_port: bool = False
    advertise: str = ""
    quarantine: Path | None = None
    reader_timeout: float = 20.0
    allow_empty: bool = False
    watch: bool | None = False
    proofs: Path | None = None
    trust: Path | None = None
    tracing: str = "off"
    log_format: str = "text"
    slow_step: float = 1.0
    tenant_metrics: bool = False
    max_connections: int = 10_000
    max_http_connections: int = 128
    limits: Limits = field(default_factory=Limits)
    trial: TrialLimits = field(default_factory=TrialLimits)

    def http_pages(self, port: int) -> str:
        """Where the pages of the HTTP port are, as a start says it."""
        root = f"http{'s' if self.http_tls else ''}://{self.host}:{port}"
        return f"metrics on {root}/metrics" + (f", console on {root}/console/" if has_console(self) else "")

    @property
    def retentions(self) -> list[float]:
        """All times after which some sessions go."""
        return [seconds for seconds in (self.retention, *self.model_retention.values()) if seconds]


RELOADABLE: Final = ("drain_grace", "hibernate_after", "model_retention", "retention")
"""Settings that may change while a server runs, beside the level of the log."""


def changes(before: Settings, after: Settings) -> dict[str, Any]:
    """What a server that runs with some settings has to change for others.

    Raises:
        StartError: Something else than what is reloadable differs.
    """
    differ = [one.name for one in fields(Settings) if getattr(before, one.name) != getattr(after, one.name)]
    if fixed := [name.replace("_", "-") for name in differ if name not in RELOADABLE]:
        known = ", ".join(sorted({"log-level", *(name.replace("_", "-") for name in RELOADABLE)} - {"model-retention"}))
        raise StartError(
            f"{', '.join(fixed)} cannot change while the server runs, and nothing was changed; what can is {known}:"
            " restart the server, or put back what it started with"
        )
    return {name: getattr(after, name) for name in differ}


def reloaded(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with changes."""
    return replace(settings, **changes)


def threads_for(processes: int) -> int:
    """Processors that one run may use where so many processes share the machine: two, or one where there are fewer."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_THREADS, available // processes))


def has_console(settings: Settings) -> bool:
    """Whether the HTTP port has the console: as it was told, else where strangers do not reach it or need a token.

    Raises:
        StartError: The host is no address.
    """
    if settings.console is not None:
        return settings.console
    return settings.tokens is not None or is_loopback(settings.host)


def check_reach(settings: Settings) -> None:
    """Checks that only this machine reaches the server, unless it was told that others may.

    Raises:
        StartError: Others do: says what to choose from.
    """
    asks = settings.tls_clients is not None or settings.tokens is not None
    over_http = ", over gRPC or HTTP," if settings.http_port is not None else ""
    if not settings.insecure and not asks and not is_loopback(settings.host):
        raise StartError(
            f"--host {settings.host} lets other machines in, and this server asks nobody who they are: whoever reaches"
            f" it{over_http} reads, steps and deletes every session. Listen on this machine (--host 127.0.0.1, the"
            " default), ask callers for tokens (--tokens) or certificates (--tls-clients), or, in a network that you"
            " trust, say --insecure"
        )


def check_console(settings: Settings) -> None:
    """Checks that the console is not where anybody reaches it, because certificates guard the gRPC port alone.

    Raises:
        StartError: It is: says what to choose from.
    """
    shown = settings.http_tls and settings.tls_clients is not None
    guarded = settings.tokens is not None or shown or settings.insecure or is_loopback(settings.host)
    if settings.console and settings.http_port is not None and not guarded:
        raise StartError(
            "--console lets whoever reaches the HTTP port step and delete sessions: --tls-clients guards gRPC alone."
            " Ask callers for tokens (--tokens), put that port in TLS too (--http-tls),"
            " listen on this machine (--host 127.0.0.1), or leave --console out"
        )


def check_tls(settings: Settings) -> None:
    """Checks that what TLS needs was told together.

    Raises:
        StartError: Something is missing: says what.
    """
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        missing = "--tls-key" if settings.tls_key is None else "--tls-certificate"
        raise StartError(f"{missing} is missing: a certificate and its key belong together")
    if settings.tls_clients is not None and settings.tls_certificate is None:
        raise StartError("--tls-clients asks callers for certificates, which needs --tls-certificate and --tls-key")
    if settings.http_tls and settings.tls_certificate is None:
        raise StartError("--http-tls puts the HTTP port in TLS, which needs --tls-certificate and --tls-key")


def check_models(settings: Settings) -> None:
    """Checks that there is something to serve, unless it may come later.

    Raises:
        StartError: Nothing can be served, or two of the paths hold one version: what lies there, and what is expected.
    """
    told = repository.scan(settings.models)
    if told.mixed:
        raise StartError(next(iter(told.clashes.values())))
    gone = [place for place in settings.models if not place.exists()]
    if gone and not settings.allow_empty:
        raise StartError(
            f"{gone[0]} does not exist; point the server at a file.onnx, or at a folder of {repository.LAYOUTS}"
        )
    if not told.found and not told.clashes and not settings.allow_empty:
        raise StartError(f"{repository.nothing(settings.models, told)}; --allow-empty waits for what comes later")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there.

    Raises:
        StartError: It is no address.
    """
    bare = host.strip("[]")
    if not bare:
        return False  # Every address of the machine.
    try:
        return ipaddress.ip_address(bare.partition("%")[0]).is_loopback
    except ValueError:
        pass
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(bare, None)}
    except (OSError, UnicodeError) as error:
        raise StartError(f"--host {host} is no address of this machine: {error}") from error
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
