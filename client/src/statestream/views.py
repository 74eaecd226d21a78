"""What the server tells of itself, its models and its sessions, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from statestream import html
from statestream.contract.errors import Unsupported
from statestream.contract.signature import Signature, TensorSpec
from statestream.v1 import inference_pb2, model_pb2, server_pb2, session_pb2


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model.

    Attributes:
        kind: "predict", "session" or "generate".
        aliases: What it can be called in place of its number, as "stable".
        batch_invariance: "exact", "padded", "approximate", or "" where it was not proved: without a batch axis.
        error: Why it does not serve; empty where it does.
    """

    name: str
    version: int
    is_default: bool
    kind: str
    digest: str
    description: str
    signature: Signature
    batch_invariance: str
    resident_sessions: int
    error: str
    aliases: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line: what it takes and gives, or why it does not serve."""
        takes, gives = (", ".join(map(_tensor, specs)) for specs in (self.signature.inputs, self.signature.outputs))
        about = f"does not serve: {self.error}" if self.error else f"{takes} → {gives}"
        named = f", {', '.join(self.aliases)}" if self.aliases else ""
        return f"<Model {self.name} version {self.version}{named} ({self.kind}): {about}>"

    def _repr_html_(self) -> str:
        """The same as notebooks show it."""
        takes, gives = (", ".join(map(_tensor, specs)) for specs in (self.signature.inputs, self.signature.outputs))
        rows = {"kind": self.kind, "takes": takes, "gives": gives}
        if self.description:
            rows["about"] = self.description
        if self.aliases:
            rows["aliases"] = ", ".join(self.aliases)
        if self.error:
            rows["does not serve"] = self.error
        return html.facts(f"{self.name}, version {self.version}", rows)


def _tensor(spec: TensorSpec) -> str:
    shape = ", ".join("?" if size < 0 else str(size) for size in spec.shape)
    return f"{spec.name} {spec.dtype}[{shape}]"


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as the server sees it; `residence` is "resident" or "stored"."""

    model: str
    version: int
    id: str
    position: int
    durable_position: int
    epoch: int
    residence: str
    ephemeral: bool
    last_used: datetime | None
    origin: int = 0
    cursor: bytes = b""

    def __repr__(self) -> str:
        """One line: whose it is, where it stands and how much of that is durable."""
        used = f", last used {self.last_used:%Y-%m-%d %H:%M:%S}" if self.last_used else ""
        stands = f"position {self.position}, durable {self.durable_position}, {self.residence}{used}"
        return f"<SessionInfo {self.id!r} of {self.model} version {self.version}: {stands}>"

    def _repr_html_(self) -> str:
        """The same as notebooks show it, with all that is known."""
        return html.facts(f"Session {self.id}", {name: value for name, value in _fields(self) if value})


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server takes."""

    max_chunk_steps: int
    max_message_bytes: int
    max_unacknowledged_chunks: int
    max_sessions: int
    max_queued_bytes: int
    max_horizon: int
    max_window_bytes: int = 0
    max_frame_chunks: int = 0
    max_frame_sessions: int = 0
    max_name_bytes: int = 0
    max_text_symbols: int = 0
    max_forecast_series: int = 0
    max_driven_rows: int = 0
    max_replies_bytes: int = 0
    max_forecast_samples: int = 0
    max_frame_calls: int = 0
    max_answer_bytes: int = 0
    max_kept_bytes: int = 0
    max_generate_sources: int = 0
    max_beams: int = 0

    def __repr__(self) -> str:
        """One line of those that are met first; each is an attribute."""
        return (
            f"<Limits: {self.max_sessions:,} sessions, {self.max_chunk_steps:,} steps a chunk,"
            f" {self.max_message_bytes:,} bytes a message, {self.max_horizon:,} steps ahead, …>"
        )

    def _repr_html_(self) -> str:
        """All of them as notebooks show them."""
        return html.facts("Limits", self._rows())

    def _rows(self) -> dict[str, str]:
        return {name: f"{value:,}" for name, value in _fields(self)}


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server: `durability` is "none", "interval" or "sync", `store` its kind, `survives` what records outlast."""

    version: str
    protocol: int
    server_id: str
    durability: str
    store: str
    survives: tuple[str, ...]
    device: str
    fingerprint: str
    draining: bool
    limits: Limits

    def __repr__(self) -> str:
        """One line; what it takes is in `limits`."""
        leaving = ", leaving" if self.draining else ""
        kept = f"store {self.store}, durability {self.durability}"
        return f"<ServerInfo {self.server_id}, version {self.version}: {self.device}, {kept}{leaving}>"

    def _repr_html_(self) -> str:
        """The same as notebooks show it, with all that it takes."""
        rows = {name: value for name, value in _fields(self) if name != "limits"}
        rows["survives"] = ", ".join(self.survives) or "nothing"
        rows |= self.limits._rows()
        return html.facts(f"Server {self.server_id}", rows)


def _fields(one: Any) -> list[tuple[str, Any]]:
    """The names of a value's fields, in words, and what they are."""
    return [(each.name.replace("_", " "), getattr(one, each.name)) for each in fields(one)]


def read_model(message: model_pb2.Model) -> Model:
    """Reads a model."""
    return Model(
        name=message.name,
        version=message.version,
        is_default=message.is_default,
        kind=_word(model_pb2.ModelKind, message.kind, "MODEL_KIND_"),
        digest=message.digest,
        description=message.signature.description,
        signature=message.signature,
        batch_invariance=_word(model_pb2.BatchInvariance, message.batch_invariance, "BATCH_INVARIANCE_"),
        resident_sessions=message.resident_sessions,
        error=message.error,
        aliases=tuple(message.aliases),
    )


def require_kind(model: Model, kind: str) -> None:
    """Checks that a model is served the way it is called.

    Raises:
        Unsupported: Says how it is called.
    """
    if model.kind and model.kind != kind:
        calls = {kind: f"client.{kind}" for kind in ("predict", "session", "generate")}
        window = (model.kind, kind) == ("predict", "session")
        raise Unsupported(
            f"model {model.name!r} is of kind {model.kind!r}; call {calls.get(model.kind, model.kind)} instead"
            + "; if it takes a window of past steps, say so in its model.toml: [window]" * window
        )


def read_session(message: session_pb2.Session) -> SessionInfo:
    """Reads a session."""
    used = message.last_used_time
    return SessionInfo(
        model=message.model,
        version=message.version,
        id=message.id,
        position=message.position,
        durable_position=message.durable_position,
        epoch=message.epoch,
        residence=_word(session_pb2.Residence, message.residence, "RESIDENCE_"),
        ephemeral=message.ephemeral,
        last_used=used.ToDatetime(tzinfo=UTC) if used.seconds or used.nanos else None,
        origin=message.origin,
        cursor=message.cursor,
    )


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a server's engine did since its process started.

    Attributes:
        batches: Batches run.
        rows: Rows in them; `rows / batches` is the mean batch.
        steps: Steps run, of all rows.
        failed_chunks: Chunks that were not applied.
        model_seconds: Seconds spent running models.
        threaded_batches: Batches that ran beside the event loop.
        reasons: Batches by why they were not larger: "serial", "time", "most", "slices", "busy", "all".
        sizes: Batches by their rows: entry i counts those of at most 2**i and more than 2**(i-1).
        waits: Batches by how long their oldest work waited: entry i counts those below 2**i µs, from 2**(i-1).
        classes: Batches and seconds of each class of work: "live", "generate", "forecast".
        queued_chunks: Chunks that wait or run now.
    """

    batches: int
    rows: int
    steps: int
    failed_chunks: int
    model_seconds: float
    threaded_batches: int
    reasons: dict[str, int]
    sizes: tuple[int, ...]
    waits: tuple[int, ...]
    classes: dict[str, tuple[int, float]]
    queued_chunks: int

    def __repr__(self) -> str:
        """One line; sizes, waits, reasons and classes are attributes, which `statestream stats` draws."""
        return (
            f"<Statistics: {self.steps:,} steps in {self.batches:,} batches of {self._mean} rows,"
            f" {self.model_seconds:.3g} s in models,"
            f" {self.queued_chunks:,} chunks queued, {self.failed_chunks:,} failed>"
        )

    def _repr_html_(self) -> str:
        """The same as notebooks show it, with the batches of each class and why they were not larger."""
        rows = {
            "steps": f"{self.steps:,}",
            "batches": f"{self.batches:,}, {self.threaded_batches:,} of them beside the event loop",
            "rows a batch": self._mean,
            "seconds in models": f"{self.model_seconds:.3g}",
            "chunks": f"{self.queued_chunks:,} queued, {self.failed_chunks:,} failed",
        }
        for name, (batches, seconds) in self.classes.items():
            rows[f"class {name}"] = f"{batches:,} batches, {seconds:.3g} s"
        if self.reasons:
            rows["not larger because"] = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
        return html.facts("What the engine did", rows)

    @property
    def _mean(self) -> str:
        return f"{self.rows / self.batches:.3g}" if self.batches else "0"


@dataclass(frozen=True, slots=True)
class Suspect:
    """Work that was running when servers died.

    Attributes:
        name: What frees it.
        what: What it is, in words; "" while it is only one of many that ran.
        deaths: Processes that died while it ran.
        crashes: Those of them that died of a signal of their own.
        since: Unix time of the first.
        quarantined: Whether it is refused; else it runs apart until that went well once.
    """

    name: str
    what: str
    deaths: int
    crashes: int
    since: float
    quarantined: bool


def read_suspect(message: server_pb2.Suspect) -> Suspect:
    """Reads what is known of work that was running when servers died."""
    return Suspect(message.name, message.what, message.deaths, message.crashes, message.since, message.quarantined)


@dataclass(frozen=True, slots=True)
class MoveAsked:
    """What clients were asked to take to other servers.

    Attributes:
        sessions: The sessions in memory that were asked for.
        streams: The streams that have them.
    """

    sessions: int
    streams: int


def read_statistics(message: server_pb2.GetStatisticsResponse) -> Statistics:
    """Reads what a server's engine did."""
    return Statistics(
        batches=message.batches,
        rows=message.rows,
        steps=message.steps,
        failed_chunks=message.failed_chunks,
        model_seconds=message.model_seconds,
        threaded_batches=message.threaded_batches,
        reasons=dict(message.batches_by_reason),
        sizes=tuple(message.batches_by_size),
        waits=tuple(message.batches_by_wait),
        classes={name: (share.batches, share.seconds) for name, share in message.classes.items()},
        queued_chunks=message.queued_chunks,
    )


def read_server(message: server_pb2.GetServerInfoResponse) -> ServerInfo:
    """Reads what a server says of itself."""
    store, limits = message.store, message.limits
    survives = (
        ("process kill", store.survives_process_kill),
        ("power loss", store.survives_power_loss),
        ("failover", store.survives_failover),
    )
    return ServerInfo(
        version=message.version,
        protocol=message.protocol,
        server_id=message.server_id,
        durability=_word(inference_pb2.DurabilityMode, message.durability, "DURABILITY_MODE_"),
        store=store.kind,
        survives=tuple(name for name, does in survives if does),
        device=message.device,
        fingerprint=message.fingerprint,
        draining=message.draining,
        limits=Limits(
            max_chunk_steps=limits.max_chunk_steps,
            max_message_bytes=limits.max_message_bytes,
            max_unacknowledged_chunks=limits.max_unacknowledged_chunks,
            max_sessions=limits.max_sessions,
            max_queued_bytes=limits.max_queued_bytes,
            max_horizon=limits.max_horizon,
            max_window_bytes=limits.max_window_bytes,
            max_frame_chunks=limits.max_frame_chunks,
            max_frame_sessions=limits.max_frame_sessions,
            max_name_bytes=limits.max_name_bytes,
            max_text_symbols=limits.max_text_symbols,
            max_forecast_series=limits.max_forecast_series,
            max_driven_rows=limits.max_driven_rows,
            max_replies_bytes=limits.max_replies_bytes,
            max_forecast_samples=limits.max_forecast_samples,
            max_frame_calls=limits.max_frame_calls,
            max_answer_bytes=limits.max_answer_bytes,
            max_kept_bytes=limits.max_kept_bytes,
            max_generate_sources=limits.max_generate_sources,
            max_beams=limits.max_beams,
        ),
    )


def _word(kind: EnumTypeWrapper, number: int, prefix: str) -> str:
    """The word of an enum's value; of one that only a newer release knows, its number."""
    word = kind.Name(number).removeprefix(prefix).lower() if number in kind.values() else str(number)
    return "" if word == "unspecified" else word
