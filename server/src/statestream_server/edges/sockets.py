"""What edges listen on: sockets, and TLS over them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence

from statestream_server.settings import Settings, StartError


def listening(
    host: str, port: int, backlog: int = 1024, *, reuse_port: bool = False, flag: str = "--port"
) -> list[socket.socket]:
    """Sockets for all addresses of a host, on one port; of any free one where that is 0.

    Raises:
        StartError: The port is taken, or the address is not this machine's.
    """
    name, bare, found = f"{host}:{port}", host.strip("[]"), list[socket.socket]()
    try:
        for family, _, _, _, address in socket.getaddrinfo(
            bare or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            both = bare in ("::", "") and family == socket.AF_INET6 and socket.has_dualstack_ipv6()
            listener = socket.create_server(
                (address[0], port), family=family, backlog=backlog, reuse_port=reuse_port, dualstack_ipv6=both
            )
            port = int(listener.getsockname()[1])
            found.append(listener)
            if both:
                break
    except OSError as error:
        for listener in found:
            listener.close()
        raise StartError(
            f"cannot listen on {name}: the port is taken, or the address is not this machine's; is another server"
            f" running there? {flag} 0 takes any free port ({error})"
        ) from error
    return found


def on_unix(path: str, backlog: int) -> socket.socket:
    """A socket at a path that this process alone uses.

    Raises:
        StartError: It cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {path}: {error}") from error
    return listener


def tls(settings: Settings, protocols: Sequence[str]) -> ssl.SSLContext | None:
    """TLS as HTTP/2 wants it (RFC 9113 §9.2): 1.2 at least, and one of the protocols agreed on in the handshake.

    Raises:
        StartError: A file is no certificate or key.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(list(protocols))
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
        if settings.tls_clients is not None:
            context.load_verify_locations(settings.tls_clients)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError) as error:
        raise StartError(
            f"{settings.tls_certificate} and {settings.tls_key} are no certificate and its key: {error}"
        ) from error
    return context
