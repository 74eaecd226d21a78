"""Credentials: the token that a client shows, and the TLS it is shown through. No message and no repr has a token."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import grpc

from statestream.arguments import came, check_flag, parse_addresses

VARIABLE: Final = "STATESTREAM_TOKEN"
"""Where a token is that nobody gave."""
Token: TypeAlias = str | Callable[[], str]
"""A token, or what gives one: it is called for every call, so that a token can be replaced."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How a client speaks TLS.

    Attributes:
        roots: PEM file of the authorities that are trusted; None for those of the machine.
        certificate: PEM file of the client's own certificate, where the server asks for one.
        key: PEM file of its key.
        name: The name that the server's certificate must have; "" for that of the address.
    """

    roots: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("roots", "certificate", "key"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str | Path):
                raise TypeError(f"tls: {field} is {came(value)}; expected the path of a PEM file")
            if value is not None and not Path(value).is_file():
                raise ValueError(f"tls: {field} is {str(value)!r}, where no file is; expected a PEM file")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls: a certificate and its key belong together; one of them is missing")
        if not isinstance(self.name, str):
            raise TypeError(f"tls: name is {came(self.name)}; expected the name in the server's certificate")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC wants of it, read from the files anew."""
        files = (self.roots, self.key, self.certificate)
        return grpc.ssl_channel_credentials(*(None if file is None else Path(file).read_bytes() for file in files))


def check_token(token: object) -> None:
    """Checks a token that was given, or what gives one.

    Raises:
        TypeError: It is neither a text nor a function.
        ValueError: No header can have it.
    """
    if token is None or callable(token):
        return
    if not isinstance(token, str):
        raise TypeError(f"token is of type {type(token).__name__}; expected a str, or a function that gives one")
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            f"token has {len(token)} characters, or some that no token has; expected printable ASCII without spaces,"
            " as `statestream token new` prints it"
        )


def check_tls(tls: object) -> None:
    """Checks what was said of TLS.

    Raises:
        TypeError: It is neither a flag nor a `Tls`.
    """
    if not isinstance(tls, Tls):
        try:
            check_flag("tls", tls)
        except TypeError:
            raise TypeError(f"tls is {came(tls)}; expected True, False or a statestream.Tls") from None


def header(token: Token | None) -> tuple[tuple[str, str], ...]:
    """What calls carry of a token, or of the one in the environment; nothing where there is none.

    Raises:
        TypeError, ValueError: What the function gave is no token.
    """
    value = token() if callable(token) else token or os.environ.get(VARIABLE)
    if not value:
        return ()
    check_token(value)
    return (("authorization", f"Bearer {value}"),)


def check_way(address: str, token: Token | None, tls: Tls | bool, *, in_clear: bool) -> None:
    """Checks that a token does not leave this machine for everybody to read.

    Raises:
        ValueError: It would, and nobody said that it may.
    """
    if tls or in_clear or not (token or os.environ.get(VARIABLE)):
        return
    for one in parse_addresses(address):
        if one.startswith(("unix:", "unix-abstract:")) or _is_here(one):
            continue
        whose = "the token" if token else f"the token in {VARIABLE}"
        raise ValueError(
            f"{whose} would go to {one} in clear, for anybody on the way to read: connect with tls=True (or"
            " tls=statestream.Tls(roots=…)), or, in a network that you trust, with Settings(token_in_clear=True)"
        )


def _is_here(address: str) -> bool:
    """Whether an address is this machine's own, whatever a name server says; one that cannot be read is not."""
    plain = address.rpartition("/")[2]
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        plain = plain.removeprefix(scheme)
    host = plain.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]").strip("[]")
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
