"""Sessions as the console shows them: found by the beginning of their ids, watched, copied, read out and deleted."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from statestream.contract import errors
from statestream_server import caller
from statestream_server.edges.http.console import values
from statestream_server.engine.table import UNBOUND
from statestream_server.server import Server
from statestream_server.sessions.admin.descriptions import Description, page_behind, page_token
from statestream_server.sessions.admission.taps import Seen

_MOST_PAGE: Final = 200
_MOST_TOLD: Final = 256
"""Steps of a watched session that one answer tells."""


async def page(server: Server, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A page of the caller's sessions, by model and id: of one model or of all, whose ids begin with a prefix.

    It costs as much as the page is long, however many sessions there are.

    Raises:
        StatestreamError: A field cannot be read, or nothing can be listed.
    """
    model, prefix = values.text(asked, "model", ""), values.text(asked, "prefix", "")
    size, tenant = values.whole(asked, "size", 1, _MOST_PAGE, 50), caller.current.get().tenant
    after = _page_behind(values.text(asked, "after", ""))
    if not prefix:
        found = await server.admin.page(tenant, model, after, size)
        full = len(found) == size
    else:
        found, full = list[Description](), False
        names = [model] if model else sorted({served.model.name for served in server.registry})
        for name in names:
            if name >= after[0]:
                found += await _with_prefix(server, tenant, name, prefix, after, size - len(found))
            if full := len(found) >= size:
                break
    addresses = await _addresses(server, found)
    token = page_token(found[-1]) if full and found else ""
    return {"sessions": [_told(server, each, addresses) for each in found], "next": token}


async def _with_prefix(
    server: Server, tenant: str, model: str, prefix: str, after: tuple[str, str], size: int
) -> list[Description]:
    found = list[Description]()
    begin = after[1] if after[0] == model else ""
    if begin < prefix:  # Lists begin above an id: the one that is the prefix itself is asked for.
        begin = prefix
        with contextlib.suppress(errors.SessionNotFound):
            found.append(await server.admin.describe(caller.key(model, prefix)))
    listed = await server.admin.page(tenant, model, (model, begin), size)
    for each in listed:
        if not each.key.id.startswith(prefix):
            break
        found.append(each)
    return found[:size]


async def described(server: Server, model: str, session: str) -> dict[str, Any]:
    """A session as it is now.

    Raises:
        StatestreamError: It cannot be found.
    """
    found = await server.admin.describe(caller.key(model, session))
    return _told(server, found, await _addresses(server, [found]))


async def watched(server: Server, model: str, session: str, since: int) -> dict[str, Any]:
    """A session, and its steps that were applied since it is watched, those behind number `since`.

    Raises:
        StatestreamError: It cannot be found, or too many are watched.
    """
    key = caller.key(model, session)
    found = await described(server, model, session)
    tap = server.intake.taps.watch(key)
    since = since if since <= tap.count else 0
    steps = [seen for seen in tap.steps if seen.number > since]
    steps = steps[-_MOST_TOLD:]
    served = server.registry.get(model, found["version"])
    answers = served.table.answers if served.table is not None else served.model.signature.outputs
    inputs = [spec.name for spec in served.model.signature.inputs]
    outputs = [spec.name for spec in answers]
    return {
        "session": found,
        "count": tap.count,
        "steps": [_seen(seen, inputs, outputs) for seen in steps],
        "missed": bool(steps) and since > 0 and steps[0].number > since + 1,
    }


def _seen(seen: Seen, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    return {
        "number": seen.number,
        "position": seen.position,
        "inputs": {name: values.plain(array) for name, array in zip(inputs, seen.inputs, strict=False)},
        "outputs": {name: values.plain(array) for name, array in zip(outputs, seen.outputs, strict=False)},
    }


def _told(server: Server, found: Description, addresses: Mapping[str, str]) -> dict[str, Any]:
    where, streamed = "in the store", False
    if found.resident:
        where = "in memory here"
        here = server.sessions.find(found.key)
        streamed = here is not None and int(here[0].owner[here[1]]) != UNBOUND
    elif found.owner in addresses:
        where = f"with the server at {addresses[found.owner]}"
    return {
        "model": found.key.model,
        "id": found.key.id,
        "version": found.version,
        "position": found.position,
        "durable": found.durable,
        "epoch": found.epoch,
        "where": where,
        "resident": found.resident,
        "streamed": streamed,
        "ephemeral": found.ephemeral,
        "used": found.used,
        "origin": found.origin,
    }


async def _addresses(server: Server, found: list[Description]) -> dict[str, str]:
    """Where other servers are reached that have some of these sessions; workers of this one share its address."""
    owners = {each.owner for each in found if not each.resident} - {"", server.id}
    if not owners:
        return {}
    peers = await server.store.peers()
    return {peer.owner: peer.address for peer in peers if peer.owner in owners and peer.address != server.lease.address}


def _page_behind(token: str) -> tuple[str, str]:
    try:
        return page_behind(token)
    except ValueError as error:
        raise values.wrong("after", token, "what a page before said; begin with the first page") from error
