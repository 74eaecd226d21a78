"""Stores: where sessions survive the process that steps them."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from statestream_server.stores.base import Store
from statestream_server.stores.memory import MemoryStore

__all__ = ["default_folder", "default_path", "open_store"]


def default_path() -> Path:
    """The sqlite store's file where none is given: in the user's state folder."""
    return Path(platformdirs.user_state_dir("statestream")) / "sessions.db"


def default_folder(url: str, kind: str = "running") -> Path:
    """Where the servers of a store note what they run, and more: beside a file, else in the user's state folder."""
    _, colon, rest = url.partition(":")
    file = Path(rest) if url.startswith("sqlite:") and colon and rest else default_path()
    return file.with_name(f"{file.name}.{kind}")


def open_store(url: str) -> Store:
    """Makes the store that a setting names; its `start` connects.

    Args:
        url: `memory`; `sqlite` (a file in the user's state folder) or `sqlite:PATH`; `redis://…` or
            `rediss://…`, whose options `RedisStore` describes.

    Raises:
        ValueError: It names no store.
        ImportError: It names Redis, whose client is not installed.
    """
    scheme, colon, rest = url.partition(":")
    if url == "memory":
        return MemoryStore()
    if url == "sqlite" or (scheme == "sqlite" and rest and not rest.startswith(("//", ":")) and not rest.endswith("/")):
        from statestream_server.stores.sqlite import SqliteStore

        return SqliteStore(rest or default_path())
    if scheme in ("redis", "rediss") and rest.startswith("//"):
        try:
            from statestream_server.stores.redis import RedisStore
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "redis":
                raise
            raise ImportError("the redis store needs redis-py: pip install 'statestream-server[redis]'") from error
        return RedisStore(url)
    shown = scheme + colon + "…" if scheme in ("redis", "rediss") else repr(url)
    raise ValueError(
        f"{shown} names no store; expected memory, sqlite, sqlite:PATH, redis://HOST:PORT/DB or rediss://HOST:PORT/DB"
    )
