"""What the client does: opens, sends, takes answers, goes on after every fault.

The same decisions as in the client's core: opens.py, chunks.py, results.py, buffer.py. What its application
receives is checked here, against the inputs that it gave.
"""

from __future__ import annotations

from typing import Any

from tests.model import state as st
from tests.model.owner import ends
from tests.model.rules import STATES, Rules
from tests.model.state import Client, Message, State, Violation, Wire


def place(rules: Rules, inputs: st.Memory, index: int) -> int:
    """The position at which an input starts."""
    return index if rules.resets_take_positions else len(st.since_mark(inputs[:index]))


def begun(rules: Rules, inputs: st.Memory, index: int) -> int:
    """Where positions began to be counted, for the input at an index."""
    return index - place(rules, inputs, index)


def say(state: State, message: Message) -> State:
    """Puts a frame on the wire."""
    assert state.wire is not None
    return state._replace(wire=state.wire._replace(up=(*state.wire.up, message)))


def connect(state: State, rules: Rules, at: int) -> State | None:
    """Connects to an owner and opens the session there."""
    client = state.client
    if client.phase != st.OFF or state.wire is not None:
        return None
    # The first open that is repeated: the claim may have been granted without the client's knowledge.
    rises = rules.incarnations_rise or client.bound or not client.incarnation
    number = state.connections + 1
    state = state._replace(wire=Wire(number, at), connections=number)
    if client.intent == st.FORKED:
        return _make(state, st.CREATE)
    return _uncertain(state, rules) if client.intent == st.RESTORE else open_session(state, rules, rises=rises)


def open_session(state: State, rules: Rules, *, rises: bool = True) -> State:
    """Asks for the session on the connection that is there."""
    client = state.client
    client = client._replace(
        phase=st.OPENING,
        incarnation=client.incarnation + rises,
        sent=client.delivered,
        got=client.delivered,
        moving=False,
    )
    # What its own close, or delete, may have ended must not be made anew to end once more.
    ending = client.intent in (st.FORGET, st.CLOSING)
    mode = st.REPLACE if client.intent == st.RESET else st.RESUME if ending else st.EITHER
    oldest, got = (place(rules, client.inputs, index) for index in (client.floor, client.delivered))
    knows = client.seen, oldest, got
    if client.intent == st.UNCERTAIN:
        knows = 0, 0, 0
    begin = (client.base, ()) if client.base and client.born == STATES else None
    frame = (st.OPEN, mode, client.incarnation, *knows, client.wants_replies, begin)
    return say(state._replace(client=client), frame)


def _make(state: State, mode: int) -> State:
    """Asks for the session to be made with a state: forked (mode create), or restored."""
    client = state.client._replace(phase=st.OPENING, incarnation=state.client.incarnation + 1)
    after = renewed(client) if mode == st.REPLACE else client
    begin = (after.base, after.inputs[: after.delivered])
    return say(state._replace(client=client), (st.MAKE, mode, client.incarnation, begin))


def _uncertain(state: State, rules: Rules) -> State:
    """A restore failed: the application opens the session and goes on with what it finds."""
    return open_session(state._replace(client=state.client._replace(intent=st.UNCERTAIN)), rules)


def send(state: State, rules: Rules) -> State | None:
    """Sends the next chunk, with what is acknowledged by now."""
    client = state.client
    if client.phase != st.READY or client.intent not in (st.STEP, st.CLOSING) or client.moving:
        return None
    if client.sent == len(client.inputs) or client.sent - client.got >= state.ahead:
        return None
    start = place(rules, client.inputs, client.sent)
    acked = max(0, client.delivered - begun(rules, client.inputs, client.sent))
    frame = (st.CHUNK, start, client.inputs[client.sent], acked)
    client = client._replace(sent=client.sent + 1, acked=client.delivered)
    return say(state._replace(client=client), frame)


def acknowledge(state: State, rules: Rules) -> State | None:
    """Acknowledges without a chunk."""
    client = state.client
    if client.phase != st.READY or client.intent != st.STEP or client.acked == client.delivered:
        return None
    acked = place(rules, client.inputs, client.delivered)
    return say(state._replace(client=client._replace(acked=client.delivered)), (st.ACK, acked))


def leave(state: State) -> State | None:
    """Asked to move, and answered: goes on elsewhere. What was saved before spares sending it again."""
    client = state.client
    return disconnected(state) if client.moving and client.sent == client.got else None


def stay(state: State) -> State | None:
    """Asked to move: stays, as it may."""
    client = state.client
    return state._replace(client=client._replace(moving=False)) if client.moving else None


def receive(state: State, rules: Rules) -> State | None:
    """Takes the next answer."""
    wire = state.wire
    if wire is None or not wire.down:
        return None
    message: Any = wire.down[0]
    state = state._replace(wire=wire._replace(down=wire.down[1:]))
    client, kind = state.client, message[0]
    if kind == st.OPENED and client.phase == st.OPENING:
        return _opened(state, rules, *message[1:])
    if kind == st.MADE and client.phase == st.OPENING:
        made = client if client.intent == st.FORKED else renewed(client)
        return open_session(state._replace(client=made._replace(intent=st.STEP)), rules)
    if kind == st.OTHER:
        return state._replace(client=client._replace(owed=0))
    if kind == st.FLUSHED:
        return _flushed(state, rules)
    if kind == st.CLOSED and client.intent == st.CLOSING:
        return _closed(state)
    if kind == st.CLOSED and client.intent == st.FORGET:
        return _deleted(state, rules)
    if kind == st.ERROR:
        return _refused(state, rules, message[1], message[2])
    if client.phase != st.READY or client.intent not in (st.STEP, st.CLOSING):
        return state
    if kind == st.MOVE:
        client = client._replace(moving=True)
    elif kind == st.DURABLE:
        durable = begun(rules, client.inputs, client.delivered) + message[1]
        client = client._replace(durable=max(client.durable, durable))
    elif kind == st.RESULT:
        client = _result(client, rules, *message[1:])
    return state._replace(client=_pruned(client, rules))


def _result(client: Client, rules: Rules, base: int, output: st.Memory, durable: int) -> Client:
    start, expected = client.got, client.inputs[: client.got + 1]
    if not rules.resets_take_positions:
        expected = st.since_mark(expected)
    if len(output) != len(expected) or start == len(client.inputs):
        return client  # Nobody waits for it: a duplicate.
    if base != client.base:
        raise Violation("the application received an output of another state than the one that it began with")
    if output != expected:
        raise Violation("the application received an output that is not that of its inputs, each once and in order")
    durable += start + 1 - len(expected)
    return client._replace(
        got=start + 1, delivered=max(client.delivered, start + 1), durable=max(client.durable, durable)
    )


def _pruned(client: Client, rules: Rules) -> Client:
    """Forgets inputs as early as the rules allow; keeping them longer is never worse."""
    until = min(client.durable, client.delivered) if rules.inputs_kept_until_durable else client.delivered
    return client._replace(floor=max(client.floor, until))


def _opened(
    state: State, rules: Rules, epoch: int, position: int, durable: int, base: int, memory: st.Memory, cursor: int
) -> State:
    client = state.client
    if cursor >= 0:
        raise Violation(
            "a cursor comes back that is of another moment than the state: who reads on there leaves inputs out"
        )
    if not rules.resets_take_positions:  # It can only be believed to be of the history that the client is in.
        history = begun(rules, client.inputs, client.delivered)
        position, durable = history + position, history + durable
    if client.intent == st.UNCERTAIN:
        after = renewed(client)
        if (base, memory) == (after.base, after.inputs[: after.delivered]):
            client = after
        elif (base, memory) != (client.base, client.inputs[: len(memory)]):
            raise Violation("a restore that failed left neither the session as it was nor the one that was to be")
    goes_on = client.intent in (st.STEP, st.FORGET, st.CLOSING)
    if goes_on and 0 < client.seen < state.store.taken < epoch:
        raise Violation("the client took a session back that another client took since, and nobody asked it to")
    if position < client.floor:
        raise Violation("a silent restart: the session begins again below what the client can replay")
    if client.fresh and position:
        raise Violation("a deleted session came back")
    first = min(position, client.delivered)
    client = client._replace(
        phase=st.READY,
        seen=epoch,
        durable=durable,
        got=first,
        sent=max(first, position) if client.wants_replies else first,
        acked=client.delivered,
        bound=True,
        wants_replies=False,
        fresh=False,
        intent=st.STEP if client.intent in (st.RESET, st.UNCERTAIN) else client.intent,
    )
    state = state._replace(client=client)
    return say(state, (st.DELETE, epoch)) if client.intent == st.FORGET else state


def _refused(state: State, rules: Rules, reason: str, start: int) -> State:
    client = state.client
    if reason == st.BEHIND:
        return state._replace(client=client._replace(asked=False))
    if start < 0 and client.phase != st.READY:
        return state  # It is of a claim that the open on its way follows.
    if client.intent == st.FORGET and (reason == st.LOST or (reason == st.UNKNOWN and client.phase == st.OPENING)):
        return _deleted(state, rules)  # As gone as it was meant to be.
    if reason == st.UNAVAILABLE:
        if client.phase != st.OPENING:
            return state
        if client.intent == st.FORKED:
            return _make(state, st.CREATE)
        return _uncertain(state, rules) if client.intent == st.RESTORE else open_session(state, rules)
    if reason in (st.GAP, st.REFUSED) and client.intent == st.CLOSING and client.phase == st.READY:
        return state._replace(client=client._replace(sent=client.got))  # It is sent again as it was.
    if reason in (st.GAP, st.UNKNOWN, st.REFUSED, st.FULL):
        return open_session(state, rules) if client.phase == st.READY else state
    if reason == st.APPLIED:
        if start >= client.delivered:
            raise Violation("the client is told that a chunk was applied, and never gets its output")
        return state._replace(client=client._replace(got=client.got + (start == client.got)))
    meant = (reason == st.LOST and state.store.forgot) or (reason == st.CONFLICT and client.changed)
    meant = meant or (reason == st.MOVED and state.store.visited) or (reason == st.POISONED and state.deaths > 1)
    if not meant:
        raise Violation(f"the only client is told {reason}, and nothing of the kind has happened")
    return state._replace(client=client._replace(phase=st.TOLD, told=reason))


def others(inputs: st.Memory, by: int) -> st.Memory:
    """Other inputs, with the resets where they were."""
    return tuple(value if value == st.MARK else value + by for value in inputs)


def anew(client: Client) -> Client:
    """A client whose application begins a new history, with other inputs."""
    inputs, base = others(client.inputs, 100), client.base and client.base + 1
    return client._replace(
        base=base,
        inputs=inputs,
        delivered=0,
        floor=0,
        durable=0,
        sent=0,
        got=0,
        acked=0,
        changed=False,
        wanted=-1,
        asked=False,
    )


def renewed(client: Client) -> Client:
    """A client whose session was restored: one input of another history was applied, others are to come."""
    other = anew(client)
    inputs = (500, *other.inputs)
    return other._replace(base=7, inputs=inputs, delivered=1, floor=1, sent=1, got=1, acked=1, seen=0, bound=False)


def _deleted(state: State, rules: Rules) -> State:
    client = anew(state.client)._replace(intent=st.STEP, seen=0, bound=False, fresh=True)
    return open_session(state._replace(client=client), rules)


def reset(state: State, rules: Rules) -> State | None:
    """The application opens the session with mode replace; all it sent is answered."""
    client = state.client
    if client.phase != st.READY or client.intent != st.STEP or client.sent != client.got or not client.sent:
        return None
    return open_session(state._replace(client=anew(client)._replace(intent=st.RESET)), rules)


def restore(state: State) -> State | None:
    """The application restores the session from a snapshot; all it sent is answered."""
    client = state.client
    if client.phase != st.READY or client.intent != st.STEP or client.sent != client.got or not client.sent:
        return None
    return _make(state._replace(client=client._replace(intent=st.RESTORE)), st.REPLACE)


def again(state: State, rules: Rules) -> State | None:
    """Another task opens the session over the same connection, while the first one waits for replies."""
    client, wire = state.client, state.wire
    if client.phase != st.READY or client.intent != st.STEP or wire is None or wire.up or wire.before:
        return None
    if client.sent == client.got or any(ends(message, client.sent) for message in wire.down):
        return None
    number = state.connections + 1
    wire = wire._replace(number=number, before=wire.number, down=())
    client = client._replace(owed=client.sent)
    return open_session(state._replace(client=client, wire=wire, connections=number), rules)


def close(state: State, rules: Rules) -> State | None:
    """The application closes the session behind all that it has sent."""
    client = state.client
    if client.phase != st.READY or client.intent != st.STEP or client.moving or client.sent < len(client.inputs):
        return None
    return ask(state._replace(client=client._replace(intent=st.CLOSING)), rules)


def flush(state: State, rules: Rules) -> State | None:
    """The application asks that all that it has sent be made durable."""
    client = state.client
    if client.phase != st.READY or client.intent != st.STEP or client.wanted >= 0 or not client.sent:
        return None
    return ask(state._replace(client=client._replace(wanted=client.sent)), rules)


def ask(state: State, rules: Rules) -> State | None:
    """Asks for what the application waits for, again where that was lost or came too early."""
    client, closes = state.client, state.client.intent == st.CLOSING
    end = len(client.inputs) if closes else client.wanted
    if client.phase != st.READY or client.asked or end < 0 or client.sent < end:
        return None
    frame = (st.CLOSE if closes else st.FLUSH, place(rules, client.inputs, end))
    return say(state._replace(client=client._replace(asked=True)), frame)


def _flushed(state: State, rules: Rules) -> State:
    """What was asked for is durable."""
    client, record = state.client, state.store.record
    count = len(record.memory) if record is not None and record.live else 0
    if count < place(rules, client.inputs, client.wanted) and not state.store.forgot:
        raise Violation("the application was told that its steps are durable, and they are not in the store")
    return state._replace(client=client._replace(wanted=-1, asked=False))


def _closed(state: State) -> State:
    """It is closed: the application ends, and its inputs with it."""
    client, record = state.client, state.store.record
    count = len(client.inputs)
    saved = record is not None and record.live and len(record.memory) == count
    if client.got < count or not (saved or state.store.forgot):
        raise Violation("the application was told that its session is closed, and steps of it are not in the store")
    return state._replace(client=client._replace(phase=st.TOLD, told="closed"))


def delete(state: State) -> State | None:
    """The application deletes the session; all it sent is answered."""
    client = state.client
    if client.phase != st.READY or client.intent != st.STEP or client.sent != client.got or not client.sent:
        return None
    return say(state._replace(client=client._replace(intent=st.FORGET)), (st.DELETE, client.seen))


def disconnected(state: State, *, heard: bool = False) -> State:
    """Gives the connection up. What is on its way to the owner may still arrive."""
    wire, client = state.wire, state.client
    if wire is None:
        return state
    left = state.left
    if wire.up or heard:
        left = (*left, wire._replace(down=(), heard=heard))
    return state._replace(wire=None, left=left, client=client._replace(phase=st.OFF, owed=0, moving=False, asked=False))


def restarted(state: State, *, changed: bool, twin: bool = False) -> State | None:
    """The program is killed, or hangs, and is started again; it has its source and the outputs it wrote down.

    Args:
        state: Before.
        changed: It sends its inputs again, and those without an output are others; else it asks for replies.
        twin: The first one hangs, and goes on listening if it ever wakes.
    """
    client = state.client
    if not client.bound or client.phase == st.TOLD or client.intent != st.STEP:
        return None
    if twin and client.phase != st.READY:
        return None
    state = disconnected(state, heard=twin)
    inputs = client.inputs
    if changed:
        inputs = inputs[: client.delivered] + others(inputs[client.delivered :], 10)
    client = client._replace(
        phase=st.OFF, inputs=inputs, changed=client.changed or changed, wants_replies=not changed,
        seen=0, durable=client.floor, sent=0, got=0, acked=0, bound=False, wanted=-1,
    )  # fmt: skip
    # A new run takes its incarnation from the clock, so it is above all before.
    return state._replace(client=client._replace(incarnation=client.incarnation + 1))
