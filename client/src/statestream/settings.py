"""Settings of a client, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from statestream.arguments import came, check_flag, check_seconds, check_whole, parse_addresses
from statestream.credentials import Tls, Token, check_tls, check_token, check_way
from statestream.v1.server_pb2 import Limits

USUAL_ANSWER: Final = 64 << 20
"""What is taken of a server before it has said how large its answers may be: what it says by default."""

ANSWER_OVERHEAD: Final = 1 << 20
"""What a message may have beside its outputs."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client connects, waits and keeps what it may have to send again.

    Attributes:
        connect_timeout: Seconds that `connect` waits for a server to answer.
        retry_timeout: Seconds that an operation outlasts a server that cannot be reached, or does not answer it.
        replay_buffer_bytes: The most bytes of inputs kept for replay; shards have equal parts of it.
        replay_seconds: How long inputs are kept after the server called them durable: a store may
            lose what it promised, in a failover for one.
        on_full: What a full replay buffer does: "block" asks the server for a flush and holds
            callers back until there is room; "drop" goes on, and a crash of the server may then
            raise StateLost.
        max_message_bytes: The most bytes of one message that is taken from the server; None for what the longest
            answer takes that the server gives.
        keepalive: Seconds between pings on a connection with calls under way; a server that leaves one
            unanswered for as long is given up for another.
        route_key: What a proxy may route by: a shard's stream, and every call about its sessions, carry it in the
            metadata `x-session-id`, so that they meet at one server. Shard k of several has `route_key-k`. Random
            ones where it is empty: then clients spread by chance, and one that starts again may reach another server,
            which takes its sessions over. With one of your own it reaches the server that has them already.
        shards: Streams of the client, each with a route key of its own. A session belongs to one by its model and
            id. One stream batches best; more of them let a proxy spread one client's sessions over several servers.
        tracing: Whether spans of streams and frames are made with OpenTelemetry, and what is sent carries the
            caller's; needs the extra [tracing]. They go where the process has set OpenTelemetry up to send them.
        token: What every call shows of who it is; a function is called for each, so that a token can be replaced.
            Where it is None, the environment variable STATESTREAM_TOKEN may have one.
        tls: Whether the connection is in TLS, or how.
        token_in_clear: Whether a token may leave this machine without TLS.
    """

    connect_timeout: float = 10.0
    retry_timeout: float = 60.0
    replay_buffer_bytes: int = 64 << 20
    replay_seconds: float = 5.0
    on_full: Literal["block", "drop"] = "block"
    max_message_bytes: int | None = None
    keepalive: float = 10.0
    route_key: str = ""
    shards: int = 1
    tracing: bool = False
    token: Token | None = field(default=None, repr=False)
    tls: Tls | bool = False
    token_in_clear: bool = False

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "retry_timeout", "keepalive"):
            check_seconds(name, getattr(self, name))
        if self.replay_seconds is False or self.replay_seconds != 0:
            check_seconds("replay_seconds", self.replay_seconds)
        for name in ("replay_buffer_bytes", "shards"):
            check_whole(name, getattr(self, name))
        check_token(self.token)
        check_tls(self.tls)
        check_flag("token_in_clear", self.token_in_clear)
        if self.max_message_bytes is not None:
            check_whole("max_message_bytes", self.max_message_bytes)
        if not isinstance(self.tracing, bool):
            raise TypeError(f"tracing is {came(self.tracing)}; expected True or False")
        if not isinstance(self.route_key, str):
            raise TypeError(f"route_key is {came(self.route_key)}; expected a str of printable ASCII")
        if not (self.route_key.isascii() and self.route_key.isprintable()):
            raise ValueError(f"route_key is {self.route_key!r}; expected printable ASCII")
        if self.on_full not in ("block", "drop"):
            raise ValueError(f"on_full is {self.on_full!r}; expected 'block' or 'drop'")

    def receives(self, limits: Limits) -> int:
        """The most bytes of one message to be taken from a server with such limits; of one that is not known, too."""
        if self.max_message_bytes is not None:
            return self.max_message_bytes
        return max(USUAL_ANSWER, limits.max_answer_bytes) + ANSWER_OVERHEAD

    def channel_options(self, receives: int) -> list[tuple[str, int | str]]:
        """What gRPC is told of it, where messages of so many bytes are received."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", receives),
            # What is too large for the server is an error of this library's, before it is sent.
            ("grpc.max_send_message_length", -1),
            ("grpc.http2.lookahead_bytes", 4 << 20),
            ("grpc.http2.max_frame_size", 1 << 20),
            ("grpc.http2.write_buffer_size", 1 << 20),
            ("grpc.keepalive_time_ms", int(self.keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.keepalive * 1000)),
            # While a ping that measures bandwidth is unanswered no other is sent, and gRPC waits a minute for it.
            ("grpc.http2.ping_timeout_ms", int(self.keepalive * 1000)),
            # This library reconnects by itself, with a backoff of its own; gRPC's would add to it.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if isinstance(self.tls, Tls) and self.tls.name:
            options.append(("grpc.ssl_target_name_override", self.tls.name))
        if self.shards > 1:
            # Shards do not share a connection, so that what balances connections spreads them too.
            options.append(("grpc.use_local_subchannel_pool", 1))
        return options


def chosen(
    settings: Settings | None, address: str, on_reconnect: Callable[[str], None] | None, **given: Any
) -> Settings:
    """What `connect` goes by: `settings`, or what was given in place of it.

    Raises:
        TypeError: Something is of a type that it cannot be.
        ValueError: Something has a value that it cannot have, or comes twice.
    """
    parse_addresses(address)
    if on_reconnect is not None and not callable(on_reconnect):
        raise TypeError(f"on_reconnect is {came(on_reconnect)}; expected a function that takes an address")
    if settings is None:
        settings = Settings(**given)
        check_way(address, settings.token, settings.tls, in_clear=settings.token_in_clear)
        return settings
    if not isinstance(settings, Settings):
        raise TypeError(f"settings is {came(settings)}; expected a statestream.Settings")
    defaults = {field.name: field.default for field in fields(Settings)}
    both = [name for name, value in given.items() if value != defaults[name]]
    if both:
        raise ValueError(f"{both[0]} came beside settings; put it into them: settings stand in place of the others")
    check_way(address, settings.token, settings.tls, in_clear=settings.token_in_clear)
    return settings
