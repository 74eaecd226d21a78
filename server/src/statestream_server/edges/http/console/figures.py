"""Figures: batches, waits and latency, other servers on the store, and what callers were refused."""

from __future__ import annotations

from typing import Any

import statestream_server
from statestream_server import caller
from statestream_server.access.tokens import ADMIN
from statestream_server.edges.identity import asks
from statestream_server.engine.scheduler import Statistics, Why
from statestream_server.refusals import recent
from statestream_server.requests import DURATIONS
from statestream_server.server import Server
from statestream_server.stores.base import Peer


def about(server: Server) -> dict[str, Any]:
    """What the server is, and what its caller may."""
    grant = caller.current.get().grant
    survives = server.store.survives
    return {
        "version": statestream_server.__version__,
        "server": server.id,
        "device": server.device,
        "fingerprint": server.fingerprint,
        "store": server.store.kind,
        "survives": survives._asdict(),
        "durability": server.settings.durability.name.lower(),
        "draining": server.sessions.draining,
        "asks": asks(),
        "tenant": caller.current.get().tenant,
        "rights": sorted(grant.token.rights) if grant is not None else ["admin", "step"],
        "max_horizon": server.settings.limits.max_horizon,
    }


def statistics(server: Server) -> dict[str, Any]:
    """What the engine did since the server started; the difference of two answers is what it did between them.

    Sizes are by powers of two of rows, durations by powers of two of microseconds, as `Statistics` has them.
    """
    engine, requests = server.engine, dict[str, list[int]]()
    for (method, _, _), kind in server.requests.kinds.items():
        counts = requests.setdefault(method.rpartition(".")[2], [0] * DURATIONS)
        requests[method.rpartition(".")[2]] = [a + b for a, b in zip(counts, kind.counts, strict=True)]
    models = {
        f"{served.model.name}/{served.model.version}": _told(
            engine.statistics_of(served.table, (served.model.graph, served.model.encoder))
        )
        for served in server.registry
    }
    return {
        "all": _told(engine.statistics),
        "models": models,
        "calls": requests,
        "under_way": server.requests.under_way,
        "streams": len(server.streams),
        "queued": engine.queued,
        "sessions": sum(served.table.sessions for served in server.registry if served.table is not None),
        "store_failures": server.checkpointer.failures,
    }


def _told(found: Statistics) -> dict[str, Any]:
    return {
        "batches": found.batches,
        "rows": found.rows,
        "steps": found.steps,
        "failed": found.failed,
        "seconds": found.seconds,
        "why": {why.name.lower(): found.why[why] for why in Why},
        "sizes": found.sizes,
        "waits": found.waits,
        "runs": found.runs,
    }


async def replicas(server: Server) -> dict[str, Any]:
    """The servers on the same store that live, as they said last."""
    peers = [*await server.store.peers()]
    if not any(peer.owner == server.id for peer in peers):  # A store that one process has hears of nobody.
        peers.append(Peer(server.id, server.lease.address, server.streams.handles))
    return {
        "replicas": [
            {"server": peer.owner, "address": peer.address, "sessions": peer.sessions, "own": peer.owner == server.id}
            for peer in sorted(peers, key=lambda peer: (peer.address, peer.owner))
        ]
    }


def refusals() -> dict[str, Any]:
    """What callers were refused lately, newest first: of the caller's tenant; to an admin of all, others' unsaid."""
    grant, found = caller.current.get().grant, list[dict[str, Any]]()
    for each in recent.newest():
        own = grant is None or each.tenant == grant.token.tenant
        if own or (grant is not None and ADMIN in grant.token.rights):
            message = each.message if own else "of another tenant, or told beside a call"
            found.append({"reason": each.reason, "message": message, "count": each.count, "last": each.last})
    return {"refusals": found}
