"""What makes the asyncio client of a server that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from statestream.aio.client import Client
from statestream.aio.opening import Opening, opening
from statestream.aio.together import start_all
from statestream.credentials import Tls, Token
from statestream.settings import Settings, chosen


def connect(
    address: str = "localhost:8001",
    *,
    connect_timeout: float = 10.0,
    retry_timeout: float = 60.0,
    replay_buffer_bytes: int = 64 << 20,
    shards: int = 1,
    on_full: Literal["block", "drop"] = "block",
    on_reconnect: Callable[[str], None] | None = None,
    token: Token | None = None,
    tls: Tls | bool = False,
    settings: Settings | None = None,
) -> Opening[Client]:
    """Connects to a server, by `await` or `async with`.

    Args:
        address: "host:port", or several with commas, of which a shard uses one at a time.
        connect_timeout: Seconds to wait for a first answer.
        retry_timeout: Seconds that an operation outlasts a server that is away, or does not answer it.
        replay_buffer_bytes: The most bytes of inputs kept for replay.
        shards: Streams of the client, see `Settings`: more than one spreads its sessions over several servers.
        on_full: What a full replay buffer does: "block" or "drop", see `Settings`.
        on_reconnect: Called with the address after a shard connected anew, on the loop.
        token: Shows the server who calls, see `Settings`; without one the environment's STATESTREAM_TOKEN does.
        tls: True for TLS with the machine's authorities, or a `Tls` that names others.
        settings: All of these as one value, in place of them.

    Raises:
        Unauthenticated: The server asks for a token, and this is none that it knows.
        ServerUnavailable: Nothing answered within `connect_timeout`; says where and why.
        Unsupported: The server speaks no version of the protocol that this release speaks.
        TypeError: An argument is of another type; so for every call, before anything is sent.
        ValueError: An argument has a value that it cannot have; likewise.
    """
    wanted = chosen(
        settings,
        address,
        on_reconnect,
        connect_timeout=connect_timeout,
        retry_timeout=retry_timeout,
        replay_buffer_bytes=replay_buffer_bytes,
        shards=shards,
        on_full=on_full,
        token=token,
        tls=tls,
    )
    return _connect(address, wanted, on_reconnect)


@opening("client")  # asyncio only
async def _connect(address: str, settings: Settings, on_reconnect: Callable[[str], None] | None) -> Client:
    client = Client(address, settings, on_reconnect)
    await start_all(client._shards.links)
    return client
