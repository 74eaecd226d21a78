"""The console of several workers: what is of all is asked of each and put together, what is of a session of its worker.

Whoever asks is looked at by the workers, with the headers that came: this process knows no tokens and has no sessions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from statestream.contract import errors
from statestream_server.edges.http.console import door, page
from statestream_server.workers.relay import Relay, Worker

_SECONDS: Final = 2.0
"""What a worker may take to say its part of what all say; who takes longer is left out."""
_MOST_ANSWER: Final = 32 << 20
_MOST_REFUSALS: Final = 200
_OF_BODIES: Final = frozenset((b"content-length", b"content-type", b"transfer-encoding"))
_OF_A_SESSION: Final = frozenset(("session", "watch", "snapshot", "fork", "delete", "step", "forecast"))
Said: TypeAlias = Sequence[tuple[int, dict[str, Any]]]
"""What workers said, by their numbers: of one at least."""


class _Reply(NamedTuple):
    status: int
    body: bytes


class _LongerError(Exception):
    """An answer is longer than is held here."""


class Console:
    """The console's paths in the first process of several."""

    def __init__(self, workers: Sequence[Worker], relay: Relay) -> None:
        """Of some workers, which `relay` reaches."""
        self._workers = workers
        self._relay = relay

    def routes(self) -> list[Route]:
        """The page, and the API that it asks."""
        return [*page.routes(), Route("/console/api/{name}", self)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request of the page."""
        begun = False

        async def begin(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._answer(scope["path_params"]["name"], scope, receive, begin)
        except ClientDisconnect:
            return
        except Exception as error:
            if begun:
                raise  # The port ends the connection: nothing else tells that the answer is not whole.
            await door.kept_by_nobody(door.refusal(door.told(error)))(scope, receive, send)

    async def _answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET" and (merge := _TOGETHER.get(name)):
            said = await self._of_all(scope, name, scope["query_string"])
            await _json(said if isinstance(said, _Reply) else merge(said))(scope, receive, send)
            return
        request, workers = Request(scope, receive), self._relay.order(scope.get("client"))
        if scope["method"] == "POST":
            body = await door.body_of(request)
            receive = _replayed(body)
            with suppress(ValueError, RecursionError):  # The worker says what is wrong with it.
                came = json.loads(body)
                if name in _OF_A_SESSION and isinstance(came, dict):
                    workers, _ = await self._whose(scope, came)
        elif name in _OF_A_SESSION:
            workers, found = await self._whose(scope, request.query_params)
            if name in ("session", "watch") and found is not None:
                reply = await self._ask(workers[0], scope, name, scope["query_string"])
                if reply is not None:
                    await _json(_placed(name, reply, workers[0].index))(scope, receive, send)
                    return
        await self._relay.hand_on(scope, receive, send, workers)

    async def _of_all(self, scope: Scope, name: str, query: bytes) -> Said | _Reply:
        """What the workers say, or what one says where none lets its caller in.

        Raises:
            Unavailable: None answers.
        """
        replies = await asyncio.gather(*(self._ask(worker, scope, name, query) for worker in self._workers))
        came = [(one.index, each) for one, each in zip(self._workers, replies, strict=True) if each is not None]
        if not came:
            raise errors.Unavailable(
                "no worker of this server answers; it starts, or leaves: try again", retry_after=1.0
            )
        good = [(index, json.loads(each.body)) for index, each in came if each.status == 200]
        return good or came[0][1]

    async def _whose(self, scope: Scope, asked: Mapping[str, Any]) -> tuple[Sequence[Worker], dict[str, Any] | None]:
        """The worker that has a session in memory first, and what it says of it; where none has it, always the same."""
        model, session = asked.get("model"), asked.get("id")
        order = self._relay.order((model, session) if isinstance(model, str) and isinstance(session, str) else None)
        if not isinstance(model, str) or not isinstance(session, str):
            return order, None
        try:
            query = urlencode({"model": model, "id": session}).encode()
        except UnicodeEncodeError:
            return order, None
        said = await self._of_all(scope, "session", query)
        if isinstance(said, _Reply):
            return order, None
        index, found = max(said, key=lambda each: _newest(each[1]))
        if not found["resident"]:
            return order, None
        return [each for each in self._workers if each.index == index], found

    async def _ask(self, worker: Worker, scope: Scope, name: str, query: bytes) -> _Reply | None:
        """What a worker answers to a question of the page; None where it does not, or not in time."""
        headers = [(key, value) for key, value in scope["headers"] if key not in _OF_BODIES]
        asked = {
            "method": "GET",
            "raw_path": f"/console/api/{name}".encode(),
            "query_string": query,
            "headers": headers,
        }
        status, body = 0, bytearray()

        async def take(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            body.extend(message.get("body", b""))
            if len(body) > _MOST_ANSWER:
                raise _LongerError

        try:
            async with asyncio.timeout(_SECONDS):
                await self._relay.hand_on(asked, _replayed(b""), take, [worker])
        except (TimeoutError, errors.Unavailable, _LongerError):
            return None
        return _Reply(status, bytes(body))


def _json(said: Any) -> Response:
    if isinstance(said, _Reply):
        response = Response(said.body, said.status, media_type="application/json")
    else:
        response = JSONResponse(said)
    return door.kept_by_nobody(response)


def _replayed(body: bytes) -> Receive:
    """A body that came, as if it came now; then the caller stays."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if first:
            return first.pop()
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return receive


def _newest(told: Mapping[str, Any]) -> tuple[bool, int, int]:
    """Whose word of a session counts: that of who has it, by the newest claim."""
    return bool(told["resident"]), int(told["epoch"]), int(told["position"])


def _place(told: dict[str, Any], index: int) -> dict[str, Any]:
    return {**told, "where": f"in worker {index}"} if told["resident"] else told


def _placed(name: str, reply: _Reply, index: int) -> Any:
    """What a worker says of a session, with its number."""
    if reply.status != 200:
        return reply
    told = json.loads(reply.body)
    return _place(told, index) if name == "session" else {**told, "session": _place(told["session"], index)}


def _sessions(said: Said) -> dict[str, Any]:
    """A page of sessions: each as the worker that has it says, as far as all of them have told what comes before."""
    found = dict[tuple[str, str], dict[str, Any]]()
    for index, page_ in said:
        for told in page_["sessions"]:
            key = told["model"], told["id"]
            if key not in found or _newest(told) > _newest(found[key]):
                found[key] = _place(told, index)
    full = [(_key(page_["sessions"][-1]), page_["next"]) for _, page_ in said if page_["next"]]
    last, token = min(full) if full else (None, "")
    kept = [found[key] for key in sorted(found) if last is None or key <= last]
    return {"sessions": kept, "next": token}


def _key(told: Mapping[str, Any]) -> tuple[str, str]:
    return told["model"], told["id"]


def _models(said: Said) -> dict[str, Any]:
    found = dict[tuple[str, int], dict[str, Any]]()
    for _, each in said:
        for told in each["models"]:
            key = told["name"], told["version"]
            if key not in found or "error" in told:
                found[key] = {**found.get(key, {}), **told}
            elif "error" not in found[key]:
                found[key].update({name: found[key][name] + told[name] for name in ("sessions", "batches", "rows")})
    return {"models": [found[key] for key in sorted(found)]}


def _statistics(said: Said) -> dict[str, Any]:
    total: Any = None
    for _, each in said:
        total = _sum(total, each)
    own = [
        {
            "worker": index,
            **{name: each[name] for name in ("sessions", "streams", "under_way", "queued")},
            **{name: each["all"][name] for name in ("steps", "batches", "failed")},
        }
        for index, each in said
    ]
    return {**total, "workers": own}


def _sum(one: Any, other: Any) -> Any:
    if one is None:
        return other
    if isinstance(one, dict):
        return {key: _sum(one.get(key), other[key]) if key in other else one[key] for key in {**one, **other}}
    if isinstance(one, list):
        return [a + b for a, b in zip_longest(one, other, fillvalue=0)]
    return one + other


def _refusals(said: Said) -> dict[str, Any]:
    found = dict[tuple[str, str], dict[str, Any]]()
    for _, each in said:
        for told in each["refusals"]:
            was = found.setdefault((told["reason"], told["message"]), {**told, "count": 0})
            was.update(count=was["count"] + told["count"], last=max(was["last"], told["last"]))
    newest = sorted(found.values(), key=lambda told: -float(told["last"]))
    return {"refusals": newest[:_MOST_REFUSALS]}


def _replicas(said: Said) -> dict[str, Any]:
    """Servers on the store, and which of them are workers here."""
    ours = {told["server"]: index for index, each in said for told in each["replicas"] if told["own"]}
    found = dict[str, dict[str, Any]]()
    for _, each in said:
        for told in each["replicas"]:
            # Of itself a worker knows the newest.
            if told["server"] not in found or told["own"]:
                own = told["server"] in ours
                found[told["server"]] = {**told, "own": own, **({"worker": ours[told["server"]]} if own else {})}
    return {"replicas": sorted(found.values(), key=lambda told: (told["address"], told["server"]))}


_TOGETHER: Final[Mapping[str, Callable[[Said], dict[str, Any]]]] = {
    "about": lambda said: {**said[0][1], "workers": len(said)},
    "models": _models,
    "sessions": _sessions,
    "statistics": _statistics,
    "replicas": _replicas,
    "refusals": _refusals,
}
