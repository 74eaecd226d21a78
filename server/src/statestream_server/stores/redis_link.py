"""The connection to a Redis or Valkey, Cluster or not: pipelines, deadlines, errors, and what it must be set to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from statestream.contract.errors import StoreUnavailable
from statestream_server.stores.lua import SCRIPTS
from statestream_server.stores.redis_keys import Command

log = logging.getLogger(__name__)

_CONNECTIONS = 16
_SCANNED = 1000
_FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
_PLAIN_OPTIONS = {"client_name", "health_check_interval", "password", "protocol", "socket_keepalive", "username"}
# redis-py has a class for some refusals and takes their code off the text; others keep it.
_ADVICE: tuple[tuple[type[Exception] | str, str], ...] = (
    (BusyLoadingError, "it is reading its data; wait until it is ready"),
    (ReadOnlyError, "it is a replica; name the primary in the URL"),
    (OutOfMemoryError, "its memory is full; raise maxmemory, or delete sessions"),
    (AuthenticationError, "give the right user and password in the URL: redis://USER:PASSWORD@HOST"),
    (NoPermissionError, "let its user run EVALSHA, SCRIPT, INFO, WAIT, SCAN, and reads and writes of keys ss:*"),
    ("MISCONF", "it cannot write its data to disk; see its log"),
)


class Address(NamedTuple):
    """A store's URL, taken apart.

    Attributes:
        url: The URL for redis-py, without our own options. It holds the password.
        shown: The address for messages, without user and password.
        wait: How many replicas have to confirm each write.
        wait_timeout: Seconds to wait for them.
        timeout: Seconds to wait for an answer.
    """

    url: str
    shown: str
    wait: int
    wait_timeout: float
    timeout: float

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads `redis://` and `rediss://` URLs.

        Raises:
            ValueError: An option or the port is unknown or no number; the message has no password.
        """
        parts = urlsplit(url)
        try:
            host, port = parts.hostname or "localhost", parts.port or 6379
        except ValueError:
            raise ValueError(f"the port in {parts.scheme}://… is no number; expected HOST:PORT") from None
        shown = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path.rstrip('/')}"
        own = {"wait": 0, "wait_timeout_ms": 100, "timeout_ms": 2000}
        others: list[tuple[str, str]] = []
        for name, text in parse_qsl(parts.query, keep_blank_values=True):
            if name in own:
                if not text.isdecimal() or (name != "wait" and int(text) == 0):
                    raise ValueError(f"the option {name} of {shown} is {text!r}; expected a whole number above 0")
                own[name] = int(text)
            elif name == "password_file":
                others.append(("password", _secret(text, shown)))
            elif name in _PLAIN_OPTIONS or name.startswith("ssl_"):
                others.append((name, text))
            else:
                known = ", ".join([*own, *sorted({*_PLAIN_OPTIONS, "password_file"}), "ssl_…"])
                raise ValueError(f"{shown} has an option {name!r}; expected one of {known}")
        plain = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(others), ""))
        return cls(plain, shown, own["wait"], own["wait_timeout_ms"] / 1000, own["timeout_ms"] / 1000)


class Link:
    """Sends pipelines to a Redis and turns everything that can go wrong into `StoreUnavailable`.

    Nothing is sent twice: a claim whose answer was lost may have been done, and only the caller knows
    what that means to it. A cancelled call may still be done.
    """

    def __init__(self, address: Address) -> None:
        """Remembers where to connect; `open` connects."""
        self.address = address
        self.fsync_always = False
        self._client: redis.asyncio.Redis | None = None
        self._cluster: RedisCluster | None = None
        # As many calls as may have a connection at a time; the others wait here, not in the pool.
        self._turns = asyncio.Semaphore(_CONNECTIONS)

    async def open(self) -> None:
        """Connects, finds out whether it is a Cluster, checks its settings and loads the scripts.

        Raises:
            StoreUnavailable: It does not answer, or may evict records.
        """
        options: dict[str, Any] = {
            # `_answer` has the deadline. redis-py's own goes through asyncio.wait_for, which before Python 3.12
            # can swallow a cancellation: a task that is to end would then go on.
            "socket_timeout": None,
            "socket_connect_timeout": self.address.timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        if self._client is None:
            self._client = redis.asyncio.Redis.from_url(self.address.url, **options)
        info = await self._answer(partial(self._client.info, "cluster"))
        if info.get("cluster_enabled") and self._cluster is None:
            self._cluster = await self._answer(partial(self._join, options))
        await self._check_settings()
        await self._load_scripts()

    async def _join(self, options: dict[str, Any]) -> RedisCluster:
        return await RedisCluster.from_url(self.address.url, **options).initialize()

    async def close(self) -> None:
        """Lets go of all connections."""
        clients, self._client, self._cluster = (self._cluster, self._client), None, None
        for client in clients:
            if client is not None:
                await client.aclose()

    async def run(self, commands: Sequence[Command], *, writes: bool = False) -> list[Any]:
        """Sends commands in one round trip (to each node) and returns their answers, in order.

        Args:
            commands: Commands; each touches keys of one Cluster slot.
            writes: Whether the replicas that `wait` asks for have to confirm.

        Raises:
            StoreUnavailable: A command was refused, or the answers did not come in time; any of the
                commands may or may not have been done.
        """
        answers = await self._send(commands, writes)
        missing = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:
            # It was restarted or flushed. The scripts that were not found have done nothing.
            await self._load_scripts()
            again = await self._send([commands[index] for index in missing], writes)
            for index, answer in zip(missing, again, strict=True):
                answers[index] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise await self._unavailable(answer)
        return answers

    async def keys(self, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
        """All keys that match, of every node, in pieces; one may come twice.

        Raises:
            StoreUnavailable: It does not answer, or refuses.
        """
        client: Any = self._cluster or self._client
        if client is None:
            raise self._closed()
        piece = list[bytes]()
        found = client.scan_iter(match=pattern, count=_SCANNED)
        while True:
            try:
                async with asyncio.timeout(self.address.timeout):
                    piece.append(await anext(found))
            except StopAsyncIteration:
                break
            except _FAILURES as error:
                raise await self._unavailable(error) from error
            if len(piece) == _SCANNED:
                yield piece
                piece = []
        yield piece

    async def _send(self, commands: Sequence[Command], writes: bool) -> list[Any]:
        """Like `run`, with refusals among the answers."""
        wait = self.address.wait if writes else 0
        pipe = self._pipeline()
        for command in commands:
            pipe.execute_command(*command)
        for target in self._targets() if wait else ():
            # Goes over the connection that wrote, which is what WAIT goes by.
            pipe.execute_command("WAIT", wait, round(self.address.wait_timeout * 1000), **target)
        answers: list[Any] = await self._answer(
            partial(pipe.execute, raise_on_error=False), self.address.wait_timeout if wait else 0
        )
        confirmed = wait
        for answer in answers[len(commands) :]:
            if isinstance(answer, Exception):
                raise await self._unavailable(answer)
            confirmed = min(confirmed, answer)
        if confirmed < wait:
            raise StoreUnavailable(
                f"{confirmed} replicas of the store {self.address.shown} confirmed a write, {wait} were to; "
                "it is written, but a failover may lose it; bring replicas up, or raise wait_timeout_ms"
            )
        return answers[: len(commands)]

    def _pipeline(self) -> Any:
        client = self._cluster or self._client
        if client is None:
            raise self._closed()
        return client.pipeline(transaction=False)

    def _targets(self) -> list[dict[str, Any]]:
        if self._cluster is None:
            return [{}]
        return [{"target_nodes": node} for node in self._cluster.get_primaries()]

    async def _answer(self, call: Callable[[], Awaitable[Any]], extra: float = 0) -> Any:
        try:
            return await self._in_time(call, extra)
        except _FAILURES as error:
            raise await self._unavailable(error) from error

    async def _in_time(self, call: Callable[[], Awaitable[Any]], extra: float = 0) -> Any:
        async with asyncio.timeout(self.address.timeout + extra), self._turns:
            return await call()

    async def _load_scripts(self) -> None:
        client: Any = self._cluster or self._client
        if client is None:
            raise self._closed()
        for script in SCRIPTS:
            await self._answer(partial(client.script_load, script.text))

    async def _check_settings(self) -> None:
        client: Any = self._cluster or self._client
        always = []
        for target in self._targets():
            settings: dict[str, str] = {}
            try:
                for pattern in ("maxmemory*", "append*"):
                    settings |= await self._in_time(partial(client.config_get, pattern, **target))
            except ResponseError as error:
                log.warning(
                    "the store %s does not tell its settings (%s); make sure that maxmemory-policy is noeviction",
                    self.address.shown,
                    error,
                )
            except _FAILURES as error:
                raise await self._unavailable(error) from error
            policy = settings.get("maxmemory-policy", "noeviction")
            if policy != "noeviction":
                raise StoreUnavailable(
                    f"the store {self.address.shown} has maxmemory-policy {policy} and would silently drop sessions; "
                    "set it to noeviction: CONFIG SET maxmemory-policy noeviction, and in its configuration file"
                )
            always.append(settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always")
        self.fsync_always = all(always)

    async def _unavailable(self, error: Exception) -> StoreUnavailable:
        shown = self.address.shown
        if isinstance(error, (ResponseError, AuthenticationError, BusyLoadingError)):
            text = str(error)
            if self._cluster is not None and isinstance(error, ClusterError):
                await self._cluster.aclose()  # asks for its nodes again at the next call
            advice = next((advice for sign, advice in _ADVICE if _shows(error, sign)), "see its log")
            return StoreUnavailable(f"the store {shown} refused: {text}; {advice}")
        if self._cluster is not None:
            await self._cluster.aclose()
        if isinstance(error, (TimeoutError, RedisTimeoutError)):
            what = f"no answer within {self.address.timeout:g} s"
        else:
            what = str(error) or type(error).__name__
        return StoreUnavailable(
            f"the store {shown} does not answer: {what}; is it running, are address and network right?"
        )

    def _closed(self) -> StoreUnavailable:
        return StoreUnavailable(f"the store {self.address.shown} is not open; start it before use")


def _secret(path: str, shown: str) -> str:
    """The first line of a file that holds a password: what a URL says, every process of the machine may read."""
    try:
        return next(iter(Path(path).read_text().splitlines()), "")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the password_file of {shown} cannot be read: {error}") from None


def _shows(error: Exception, sign: type[Exception] | str) -> bool:
    return sign in str(error) if isinstance(sign, str) else isinstance(error, sign)
