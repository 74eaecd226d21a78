"""Settings of a client, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client connects, waits and keeps what it may have to send again.

    Attributes:
        connect_timeout: Seconds that `connect` waits for a server to answer.
        retry_timeout: Seconds that an operation outlasts an unreachable server.
        replay_buffer_bytes: The most bytes of inputs kept for replay; shards have equal parts of it.
        replay_seconds: How long inputs are kept after the server called them durable: a store may
            lose what it promised, in a failover for one.
        on_full: What a full replay buffer does: "block" asks the server for a flush and holds
            callers back until there is room; "drop" goes on, and a crash of the server may then
            raise StateLost.
        max_message_bytes: The most bytes of one message from the server.
        keepalive: Seconds between pings on a connection with calls under way; a server that leaves one
            unanswered for as long is given up for another.
        route_key: What a proxy may route by: a shard's stream, and every call about its sessions, carry it in the
            metadata `x-session-id`, so that they meet at one server. Shard k of several has `route_key-k`. Random
            ones where it is empty: then clients spread by chance, and one that starts again may reach another server,
            which takes its sessions over. With one of your own it reaches the server that has them already.
        shards: Streams of the client, each with a route key of its own. A session belongs to one by its model and
            id. One stream batches best; more of them let a proxy spread one client's sessions over several servers.
    """

    connect_timeout: float = 10.0
    retry_timeout: float = 60.0
    replay_buffer_bytes: int = 64 << 20
    replay_seconds: float = 5.0
    on_full: Literal["block", "drop"] = "block"
    max_message_bytes: int = 64 << 20
    keepalive: float = 10.0
    route_key: str = ""
    shards: int = 1

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "retry_timeout", "replay_buffer_bytes", "max_message_bytes", "keepalive"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not (self.route_key.isascii() and self.route_key.isprintable()):
            raise ValueError(f"route_key is {self.route_key!r}; expected printable ASCII")
        if self.shards < 1:
            raise ValueError(f"shards is {self.shards}; expected 1 or more")
        if self.on_full not in ("block", "drop"):
            raise ValueError(f"on_full is {self.on_full!r}; expected 'block' or 'drop'")

    def channel_options(self) -> list[tuple[str, int | str]]:
        """What gRPC is told of it."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
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
        if self.shards > 1:
            # Shards do not share a connection, so that what balances connections spreads them too.
            options.append(("grpc.use_local_subchannel_pool", 1))
        return options
