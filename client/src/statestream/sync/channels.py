# Generated from statestream/aio/channels.py by `make twins`; change that one.
"""Channels: how a server is dialled."""

from __future__ import annotations

import grpc

from statestream.credentials import Tls
from statestream.settings import Settings


def channel_to(address: str, settings: Settings, receives: int) -> grpc.Channel:
    """A channel to a server, on which messages of so many bytes are received; whoever has it closes it."""
    options, tls = settings.channel_options(receives), settings.tls
    if tls:
        credentials = tls.credentials() if isinstance(tls, Tls) else grpc.ssl_channel_credentials()
        return grpc.secure_channel(address, credentials, options=options)
    return grpc.insecure_channel(address, options=options)
