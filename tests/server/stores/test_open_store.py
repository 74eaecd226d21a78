from __future__ import annotations

import sys
from pathlib import Path

import pytest

from statestream_server.stores import default_path, open_store
from statestream_server.stores.sqlite import SqliteStore


def test_memory() -> None:
    assert open_store("memory").kind == "memory"


def test_sqlite_without_a_path_is_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        assert default_path().is_relative_to(tmp_path)
    store = open_store("sqlite")
    assert isinstance(store, SqliteStore)
    assert store.path == default_path()
    assert "statestream" in store.path.parts


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:some/file.db", Path.cwd() / "some/file.db"),
        ("sqlite:/var/lib/x.db", Path("/var/lib/x.db")),
        ("sqlite:~/x.db", Path.home() / "x.db"),
        ("sqlite:a b:c?d.db", Path.cwd() / "a b:c?d.db"),
    ],
)
def test_sqlite_with_a_path(url: str, path: Path) -> None:
    store = open_store(url)
    assert isinstance(store, SqliteStore)
    assert store.path == path


@pytest.mark.parametrize("url", ["redis://localhost", "rediss://user:secret@[::1]:6380/2?wait=1&ssl_check_hostname=no"])
def test_redis(url: str) -> None:
    assert open_store(url).kind == "redis"


@pytest.mark.parametrize(
    "url", ["", "sqlite:", "sqlite::memory:", "sqlite://x", "sqlite:folder/", "postgres://secret", "Memory", "memory:1"]
)
def test_no_store(url: str) -> None:
    with pytest.raises(ValueError, match="names no store; expected memory, sqlite, sqlite:PATH, redis://"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis:secret", "names no store"),
        ("redis://:secret@host:port", "expected HOST:PORT"),
        ("redis://:secret@host?wait=all", "the option wait of redis://host:6379 is 'all'"),
        ("redis://:secret@host?timeout_ms=0", "expected a whole number above 0"),
        ("redis://:secret@host:7/1?color=red", "redis://host:7/1 has an option 'color'; expected one of wait,"),
        ("redis://:secret@host?password_file=/nowhere/to/be/found", "the password_file of redis://host:6379 cannot be"),
    ],
)
def test_what_is_wrong_with_a_redis_url_is_said_without_its_password(url: str, words: str) -> None:
    with pytest.raises(ValueError, match="expected|cannot be read") as caught:
        open_store(url)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_redis_without_its_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.startswith(("redis", "statestream_server.stores.redis")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ImportError, match="needs redis-py: pip install"):
        open_store("redis://localhost")
