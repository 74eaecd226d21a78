"""`statestream.local`: a client and a server of its own, in a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from statestream.owned import START_SECONDS, Models, Owned

if TYPE_CHECKING:
    from statestream.settings import Settings
    from statestream.sync import Client


def local(
    models: Models,
    *,
    store: str = "memory",
    durability: str | None = None,
    device: str | None = None,
    timeout: float = START_SECONDS,
    settings: Settings | None = None,
    **options: Any,
) -> Client:
    """Starts a server in a child process and connects to it; the server package has to be installed.

        with statestream.local("net.onnx") as client:
            print(client.session("net").step([1, 2]))

    The server answers on a Unix socket in a folder that only this user enters. It leaves when the client is closed or
    dropped, and when this process ends, also by SIGKILL. `client.server` is it: `address` for other clients, asyncio
    ones too, `log()` for what it said. It stays when a `with` block is not used, as in a notebook.

    Args:
        models: A .onnx file, a folder of models, or a list of both, as `statestream serve` takes them.
        store: Where sessions are kept: "memory", which ends with the server, "sqlite:PATH" or "redis://…".
        durability: "none", "interval" or "sync"; none for the memory store, else interval.
        device: Where models run: "auto", "cpu", "cuda" or "cuda:N".
        timeout: Seconds that the start may take.
        settings: Settings of the client; its `retry_timeout` is 10 s where nothing is said.
        options: Any other option of `statestream serve`, with `_` for `-`: `max_sessions=100`, `log_level="debug"`.

    Raises:
        Unsupported: The server is not installed here; says what to install.
        FileNotFoundError: There is no such model.
        ServerUnavailable: The server did not start; says why, in its own words.
        TypeError: `models` is no path (a module is exported to a file first), or an option is of another type.
        ValueError: There is no such option, or it cannot have that value.
    """
    server = Owned(models, {"store": store, "durability": durability, "device": device, **options}, timeout)
    try:
        # gRPC and NumPy are imported while the server starts, which imports them, too.
        from statestream.sync.owning import owning
    except BaseException:
        server.kill()
        raise
    return owning(server, settings)
