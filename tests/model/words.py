"""Schedules as sentences."""

from __future__ import annotations

from typing import Any

from tests.model import state as st
from tests.model.explorer import Found, replay
from tests.model.rules import Rules, Setting
from tests.model.state import State
from tests.model.world import Event, calm, next_fair

TOLD_OF_LOOPS = 12
"""Events that are told of one that never ends."""

_FAULTS = {
    "cut": "the client gives its connection up; what it sent may still arrive",
    "flush": "the store forgets everything",
    "away": "the store stops answering",
    "return": "the store answers again",
    "reset": "the application opens the session with mode replace, with inputs of a new history",
    "delete": "the application deletes the session and opens it again, with inputs of a new history",
    "close": "the application closes the session",
    "save": "the application asks that all that it has sent be made durable",
    "restart": "the client is killed and started again; it asks for the replies that it lacks",
    "change": "the client is killed and started again; inputs without a reply are others now",
    "twin": "the client hangs, listening; it is started a second time, with other inputs",
    "restore": "the application restores the session from a snapshot",
    "again": "another task of the client opens the session over the same connection",
    "leave": "the client, asked to, goes on elsewhere",
    "stay": "the client stays where it is",
    "land": "the store decides a claim for which nobody waits any more",
}


def sentences(setting: Setting, rules: Rules, found: Found) -> list[str]:
    """A schedule, one sentence an event, and the invariant that broke.

    Where the client never gets on, the first events after the faults are told too.
    """
    states = replay(setting, rules, found.schedule)
    told = [*map(_sentence, states, found.schedule)]
    if len(states) > len(told):
        state = calm(states[-1])
        for _ in range(TOLD_OF_LOOPS):
            step = next_fair(state, rules)
            if step is None:
                break
            told.append(f"(no fault any more) {_sentence(state, step[0])}")
            state = step[1]
    return [*told, f"→ {found.violation}"]


def faults(setting: Setting) -> str:
    """A setting in words."""
    budget = [f"{count} {name}" for name, count in setting.faults._asdict().items() if count]
    kind = (
        ["", ", initial states", ", a fork"][setting.born] + ", mode sync" * setting.sync + ", poison" * setting.poison
    )
    kind += f", {setting.kept} replies kept" * (setting.kept > 0)
    kind += f", a reset at {setting.mark}" * (setting.mark >= 0) + f", {setting.ahead} ahead" * (setting.ahead != 2)
    return f"{setting.chunks} chunk{'s' * (setting.chunks > 1)}{kind}, {', '.join(budget) or 'no fault'}"


def _sentence(state: State, event: Event) -> str:
    name, at = event
    who, wire = "AB"[at] if at < 2 else "", state.wire
    if name in _FAULTS:
        return _FAULTS[name]
    if name == "connect":
        client = state.client
        if client.intent == st.FORKED:
            return f"the client connects to {who} and asks for the fork"
        return f"the client connects to {who} and sends an open (it has seen epoch {client.seen})"
    if name == "send":
        mark = state.client.inputs[state.client.sent] == st.MARK
        return f"the client sends {'the reset' if mark else f'chunk {state.client.sent}'}"
    if name == "ask":
        return f"the client asks again for {'the close' if state.client.intent == st.CLOSING else 'the flush'}"
    if name == "acknowledge":
        return f"the client acknowledges position {state.client.delivered}"
    if name == "receive" and wire is not None:
        return f"the client receives {_message(wire.down[0])}"
    if name == "deliver" and wire is not None:
        return f"{who} takes {_message(wire.up[0])}"
    if name == "duplicate" and wire is not None:
        return f"{who} takes {_message(wire.up[0])}, which will arrive a second time"
    if name == "late":
        late = state.left[at]
        return f"{'AB'[late.owner]} takes, late, from a connection that was given up: {_message(late.up[0])}"
    row = state.owners[at].row
    ends = "and replies" if not state.sync else "the reply waits for its save"
    if row is not None and row.queue and state.deaths >= 0 and not row.queue[0][1]:
        ends = "and dies of it"
    return {
        "decide": f"the store decides {who}'s claim",
        "install": f"the store's answer reaches {who}: the session is open there",
        "lost": f"the store's answer to {who} is lost: a deadline, a cancel or an error",
        "visit": f"another client asks {who} for the session, and leaves",
        "move": f"{who} wants the session to be elsewhere",
        "doze": f"the session leaves {who}'s memory; its connection keeps it",
        "put": f"{who} puts the state into the row",
        "unary": f"{who} takes a chunk that came as a call of its own; it waits out the claim",
        "unpark": f"{who} goes on with the chunk that waited out the claim",
        "run": f"{who} runs the oldest chunk in its queue, at position {len(row.memory) if row else 0}, {ends}",
        "refuse": f"{who} refuses the oldest chunk in its queue, and with it what is behind",
        "capture": f"{who} captures a checkpoint at position {len(row.memory) if row else 0}",
        "write": f"{who}'s checkpoint reaches the store",
        "revalidate": f"{who} asks the store whether the session is still its own",
        "wake": f"{who} wakes",
        "sleep": f"{who} is stopped",
        "crash": f"{who} is killed and starts again, empty",
    }[name]


def _message(message: Any) -> str:
    kind, *rest = message
    if kind == st.OPEN:
        mode = {st.REPLACE: "replace", st.RESUME: "resume"}.get(rest[0], "either")
        return f"the open (mode {mode}, incarnation {rest[1]}, seen epoch {rest[2]}, can replay from {rest[3]})"
    if kind == st.MAKE:
        return f"the call to {'fork' if rest[0] == st.CREATE else 'restore'} the session (incarnation {rest[1]})"
    if kind == st.CHUNK:
        what = "the reset at" if rest[1] == st.MARK else "chunk"
        return f"{what} {rest[0]} (input {rest[1]}, acknowledged {rest[2]})"
    if kind == st.ACK:
        return f"the acknowledgement of {rest[0]}"
    if kind == st.CLOSE:
        return f"the close, behind {rest[0]}"
    if kind == st.FLUSH:
        return f"the flush up to {rest[0]}"
    if kind == st.FLUSHED:
        return "the answer to the flush"
    if kind == st.DELETE:
        return f"the delete of epoch {rest[0]}"
    if kind == st.OPENED:
        return f"opened: epoch {rest[0]}, position {rest[1]}, durable {rest[2]}"
    if kind == st.RESULT and (not rest[1] or rest[1][-1] == st.MARK):
        return f"the reply to the reset, durable {rest[2]}"
    if kind == st.RESULT:
        begin = f"state {rest[0]} and " * bool(rest[0])
        return f"the reply to chunk {len(rest[1]) - 1}: output of {begin}{list(rest[1])}, durable {rest[2]}"
    if kind == st.DURABLE:
        return f"durable {rest[0]}"
    if kind in (st.CLOSED, st.MADE, st.OTHER, st.MOVE):
        other, move = "what its first handle waited for", "the request to take the session elsewhere"
        return {st.CLOSED: "closed", st.MADE: "made", st.OTHER: other, st.MOVE: move}[kind]
    return str(rest[0])
