"""Grants: tokens as a running server knows them, and the calls under each, which end when it does."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from statestream.contract import errors
from statestream_server.access import tokens
from statestream_server.access.certificates import NOBODY, Names
from statestream_server.access.tokens import MOST_TOKEN, STEP, TenantLimits, Token, Tokens, TokensError

log = logging.getLogger(__name__)

HEADER: Final = "authorization"
_SCHEME: Final = "bearer "
_LOOK_SECONDS: Final = 0.25
"""How often the file is looked at. What it says counts at the second look that finds the same, as half of a file may
read as a whole one with fewer tokens: so a token that was taken out of it may still be used for twice as long."""


class Running(Protocol):
    """A call that runs without a task."""

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""


class Grant:
    """A token that holds, and what runs under it.

    Attributes:
        token: What is known of it; never the token itself.
        usage: What its tenant has under way.
        ended: Why it does not hold any more, "" while it does.
    """

    __slots__ = ("_calls", "_ends", "_shown", "_tasks", "ended", "token", "usage")

    def __init__(self, token: Token, usage: Usage, ends: float = math.inf) -> None:
        """Nothing runs; `ends` is when the certificate that was shown for it ends."""
        self.token = token
        self.usage = usage
        self.ended = ""
        self._ends = ends
        self._shown = dict[float, Grant]()
        self._tasks = set[asyncio.Task[Any]]()
        self._calls = set[Running]()

    def __repr__(self) -> str:
        return f"<Grant {self.token.id} of tenant {self.token.tenant!r}>"

    def check(self, right: str) -> None:
        """Checks that it may what a call needs; "" is what every token may.

        Raises:
            PermissionDenied: It may not: says which right is missing.
            Unauthenticated: It has ended.
        """
        if self.ended:
            raise errors.Unauthenticated(self.ended)
        if right and right not in self.token.rights:
            raise errors.PermissionDenied(
                f"this call needs the right {right!r}; {self.token} has"
                f" {', '.join(sorted(self.token.rights))}. Ask whoever made it for one that may",
                metadata={"right": right},
            )

    def until(self, ends: float) -> Grant:
        """The same as a certificate that ends then has it: what runs under it ends then, or with this one."""
        if ends >= self.token.expires or self.ended:
            return self
        found = self._shown.get(ends)
        if found is None:
            found = self._shown[ends] = Grant(self.token, self.usage, ends)
        return found

    def look(self, now: float) -> None:
        """Ends what does not hold at a time, of this one and of the certificates that were shown for it."""
        if self.ended:
            return
        if now >= self.token.expires:
            self.end(f"{self.token} has expired; ask whoever made it for another one")
        elif now >= self._ends:
            self.end(f"{self.token}: the one that was shown has ended (notAfter); connect again with a new one")
        for ends, shown in [*self._shown.items()]:
            shown.look(now)
            if shown.ended:
                del self._shown[ends]

    def enter(self, call: Running) -> None:
        """Has a call without a task end where the grant ends, until `leave`."""
        self._calls.add(call)

    def leave(self, call: Running) -> None:
        """The call is over."""
        self._calls.discard(call)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ends the running task where the grant ends meanwhile.

        Raises:
            Unauthenticated: It has ended.
        """
        task = asyncio.current_task()
        assert task is not None
        if why := self._over():
            raise errors.Unauthenticated(why)
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            why = self._over()
            if not why:
                raise
            task.uncancel()
            raise errors.Unauthenticated(why) from None
        finally:
            self._tasks.discard(task)

    def _over(self) -> str:
        return self.ended

    def end(self, why: str) -> None:
        """Ends it, and what runs under it."""
        self.ended = why
        for task in self._tasks:
            task.cancel()
        for call in [*self._calls]:
            call.fail(errors.Unauthenticated(why))
        shown, self._shown = self._shown, {}
        for each in shown.values():
            each.end(why)


class Usage:
    """What a tenant has under way in this process, and how much that may be.

    Attributes:
        limits: How much.
        held: How many there are, by what is counted.
        refused: How often something was beyond a limit.
    """

    __slots__ = ("held", "limits", "refused", "tenant")

    def __init__(self, tenant: str, limits: TenantLimits) -> None:
        """Nothing."""
        self.tenant = tenant
        self.limits = limits
        self.held = dict[str, int]()
        self.refused = 0

    @contextmanager
    def holding(self, *whats: str, nbytes: int = 0) -> Iterator[None]:
        """Counts a call of so many bytes, as one of some kinds, while it is under way.

        Raises:
            Overloaded: It would be more than the tenant may have.
        """
        self.admit(*whats, nbytes=nbytes)
        self.take(*whats, nbytes=nbytes)
        try:
            yield
        finally:
            self.give(*whats, nbytes=nbytes)

    @contextmanager
    def growing(self, nbytes: int) -> Iterator[Callable[[int], None]]:
        """Counts bytes that a call which counts `nbytes` already comes to hold beside them, while it is under way.

        What this yields is called with how many more there are, and raises `Overloaded` where that is too much.
        """
        more = 0

        def grow(some: int) -> None:
            nonlocal more
            if self.held.get("bytes", 0) > nbytes + more:  # A large one is let in alone.
                self.check("bytes", some)
            self.take(nbytes=some)
            more += some

        try:
            yield grow
        finally:
            self.give(nbytes=more)

    def admit(self, *whats: str, nbytes: int = 0) -> None:
        """Checks that there is room for one more call of some kinds, and of so many bytes.

        Raises:
            Overloaded: It would be more than the tenant may have.
        """
        for what in whats:
            self.check(what, 1)
        if nbytes and self.held.get("bytes"):  # A large one is let in alone.
            self.check("bytes", nbytes)

    def take(self, *whats: str, nbytes: int = 0) -> None:
        """Counts such a call, until `give`."""
        for what in whats:
            self.held[what] = self.held.get(what, 0) + 1
        self.held["bytes"] = self.held.get("bytes", 0) + nbytes

    def give(self, *whats: str, nbytes: int = 0) -> None:
        """It is over."""
        self.held["bytes"] -= nbytes
        for what in whats:
            self.held[what] -= 1

    def check(self, what: str, count: int, now: int | None = None) -> None:
        """Checks that there is room for so many more, beside `now`, or those that are counted here.

        Raises:
            Overloaded: There is not.
        """
        most, has = getattr(self.limits, what), self.held.get(what, 0) if now is None else now
        if has + count > most:
            self.refused += 1
            kind = errors.TooManySessions if what == "sessions" else errors.Overloaded
            raise kind(
                f"tenant {self.tenant!r} has {has:,} {what} and asks for {count:,} more; its limit is {most:,}. End"
                f" some, or have {what} raised in the file of tokens",
                metadata={"limit": what, "most": str(most), "has": str(has)},
                retry_after=_RETRY_SECONDS,
            )


_RETRY_SECONDS: Final = 1.0


class Access:
    """The tokens of a server: read from a file, and again whenever that has other contents."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells Unix time.

        Raises:
            TokensError: The file cannot be read.
        """
        self._path = path
        self._clock = clock
        self._seen = self._coming = tokens.read(path)
        self._told = b""
        self.usages = dict[str, Usage]()
        """What tenants have under way, of those that called or have a token."""
        self._grants = dict[str, Grant]()
        self._take(tokens.parse(self._seen, str(path)))

    @property
    def knows_certificates(self) -> bool:
        """Whether a certificate may stand in place of a token."""
        return any(grant.token.is_certificate for grant in self._grants.values())

    def grant(self, headers: Iterable[tuple[str, str | bytes]], names: Names = NOBODY) -> Grant:
        """What a call's token grants; where there is none, what the certificate with these names does.

        Raises:
            Unauthenticated: There is none, or it does not hold. Nothing that came is quoted.
        """
        came = [value for name, value in headers if name == HEADER]
        if not came:
            for key in names.known_by():
                if key in self._grants:
                    return self._holding(self._grants[key].until(names.ends))
            if names != NOBODY:
                raise errors.Unauthenticated(
                    "the call has no token, and the file of tokens knows no certificate of its caller's names; add it"
                    " there as [[certificate]], or show a token"
                )
            raise errors.Unauthenticated(
                "the call has no token, and this server asks for one: statestream.connect(token=…), the environment"
                " variable STATESTREAM_TOKEN, or the header `authorization: Bearer TOKEN`"
            )
        text = came[0]
        if len(came) > 1 or not isinstance(text, str) or text[: len(_SCHEME)].lower() != _SCHEME:
            raise errors.Unauthenticated("the header authorization is not of the form `Bearer TOKEN`, once")
        secret = text[len(_SCHEME) :].strip()
        found = self._grants.get(tokens.hash_of(secret)) if 0 < len(secret) <= MOST_TOKEN else None
        if found is None:
            raise errors.Unauthenticated("the token is not known here: it was revoked, or is another server's")
        return self._holding(found)

    def _holding(self, found: Grant) -> Grant:
        """The same, while it holds.

        Raises:
            Unauthenticated: It does not.
        """
        found.look(self._clock())
        if found.ended:
            raise errors.Unauthenticated(found.ended)
        return found

    async def keep(self) -> None:
        """Looks at the file, and at the time, until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self.look()
            except Exception:
                log.exception("a look at the tokens failed; those that are known hold")

    def look(self) -> None:
        """Takes over what the file says now, and said at the look before; one that cannot be read changes nothing.

        Ends what does not hold.
        """
        now = self._clock()
        for grant in self._grants.values():
            grant.look(now)
        try:
            data = tokens.read(self._path)
            before, self._coming = self._coming, data
            if data == self._seen or data != before:
                return
            said = tokens.parse(data, str(self._path))
        except TokensError as error:
            if self._told != (told := str(error).encode()):
                self._told = told
                log.warning("the tokens stay as they are: %s", error)
            return
        self._seen, self._told = data, b""
        self._take(said)
        log.info("tokens read anew: there are %d", len(said.tokens))

    def _take(self, said: Tokens) -> None:
        for tenant, usage in self.usages.items():
            usage.limits = said.limits_of(tenant)
        before, self._grants = self._grants, {}
        for key, token in said.tokens.items():
            known = before.get(key)
            if known is not None and known.token == token and not known.ended:
                self._grants[key] = before.pop(key)
                continue
            usage = self.usages.setdefault(token.tenant, Usage(token.tenant, said.limits_of(token.tenant)))
            self._grants[key] = Grant(token, usage)
        for grant in before.values():
            if not grant.ended:
                grant.end(f"{grant.token} was revoked, or changed: connect again with one that holds")


__all__ = ["STEP", "Access", "Grant", "Usage"]
