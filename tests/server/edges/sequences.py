"""Random sequences of frames as a client might send them: mostly right, sometimes wrong, in any cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import hpack
from hypothesis import strategies as st

from statestream.v1 import inference_pb2 as pb
from tests.support import http2
from tests.support.http2 import INFO, STREAM, block, data, enveloped, headers_of, ping, raw, reset, settings, window

PATHS: Final = (INFO, STREAM, "/statestream.v1.InferenceService/Nothing", "nothing")
_OPENING: Final = enveloped(pb.StreamRequest(frame=1, flush=pb.FlushFrame(handles=bytes(4))))
BODIES: Final = (
    b"",
    enveloped(b""),
    enveloped(b"")[:3],
    _OPENING,
    _OPENING * 3,
    _OPENING[:-2],
    b"\x01" + enveloped(b"x")[1:],
    b"\0\xff\xff\xff\xff",
    enveloped(bytes(20_000)),
    bytes(16_384),
)
AMOUNTS: Final = (1, 0, 100, 1000, 65_535, 1 << 20, (1 << 31) - 1)
SETTINGS: Final = (
    ((4, 65_535),),
    ((4, 0),),
    ((4, 100),),
    ((4, (1 << 31) - 1),),
    ((1, 0),),
    ((1, 4096),),
    ((5, 16_384), (5, 1 << 20)),
    ((3, 10),),
    ((2, 0),),
    ((0x99, 7),),
    (),
)
"""What a client may set; one is too much where windows are lifted."""


@dataclass(frozen=True)
class Step:
    """One part of a sequence: what is sent, or what the server does meanwhile."""

    kind: str
    stream: int
    choice: int
    flags: int


KINDS: Final = (
    *("call",) * 5,
    *("data",) * 6,
    *("window",) * 3,
    *("answer",) * 4,
    *("reset", "ping", "settings", "trailers", "split", "priority", "unknown", "goaway", "drop", "wrong", "padded"),
)

steps: Final = st.lists(
    st.builds(Step, st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 40), st.integers(0, 7)),
    max_size=40,
)
cuts: Final = st.lists(st.integers(1, 400), max_size=12)
mutations: Final = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 255), st.sampled_from("flip drop twice".split())), max_size=4
)


class Sender:
    """Makes bytes of steps; streams are named by how long ago they were begun."""

    def __init__(self) -> None:
        self._encoder = hpack.Encoder()
        self.begun: list[int] = []

    def begin(self) -> bytes:
        return http2.PREFACE + settings() + settings(ack=True)

    def sent(self, step: Step) -> bytes:
        """The bytes of one step."""
        make: Any = getattr(self, f"_{step.kind}", None)
        found: bytes = make(step) if make is not None else b""
        return found

    def number(self, step: Step) -> int:
        if step.stream < len(self.begun):
            return self.begun[-1 - step.stream]
        return 2 * len(self.begun) + 1 if step.stream == 5 else 0

    def _headers(self, step: Step) -> bytes:
        fields = headers_of(PATHS[step.choice % len(PATHS)])
        if step.flags & 2:  # By the table, which changes.
            return self._encoder.encode([*fields, ("x-choice", str(step.choice))])
        return block(fields)

    def _next(self) -> int:
        number = (self.begun[-1] if self.begun else -1) + 2
        self.begun.append(number)
        return number

    def _call(self, step: Step) -> bytes:
        made = self._headers(step)
        return raw(1, 4 | step.flags & 1, self._next(), made)

    def _split(self, step: Step) -> bytes:
        made, number = self._headers(step), self._next()
        cut = step.choice % len(made)
        between = ping() if step.flags == 7 else b""
        return raw(1, step.flags & 1, number, made[:cut]) + between + raw(9, 4, number, made[cut:])

    def _data(self, step: Step) -> bytes:
        return data(self.number(step), BODIES[step.choice % len(BODIES)], end=bool(step.flags & 1))

    def _padded(self, step: Step) -> bytes:
        body = BODIES[step.choice % len(BODIES)]
        return raw(0, 8 | step.flags & 1, self.number(step), bytes((step.flags,)) + body + bytes(step.flags))

    def _window(self, step: Step) -> bytes:
        return window(0 if step.flags == 0 else self.number(step), AMOUNTS[step.choice % len(AMOUNTS)])

    def _reset(self, step: Step) -> bytes:
        return reset(self.number(step), step.choice % 14)

    def _ping(self, step: Step) -> bytes:
        return ping(ack=step.flags == 7)

    def _settings(self, step: Step) -> bytes:
        chosen = SETTINGS[step.choice % len(SETTINGS)]
        return settings(*chosen) + settings(ack=True) * (step.flags == 7)

    def _trailers(self, step: Step) -> bytes:
        fields = [("x-last", "yes")] if step.flags < 6 else [(":method", "POST")]
        return raw(1, 4 | (step.flags != 5), self.number(step), block(fields))

    def _priority(self, step: Step) -> bytes:
        return raw(2, 0, self.number(step), bytes(5 - (step.flags == 7)))

    def _unknown(self, step: Step) -> bytes:
        return raw(0x20 + step.choice, step.flags, self.number(step), bytes(step.choice))

    def _goaway(self, step: Step) -> bytes:
        return raw(7, 0, 0 if step.flags < 6 else 1, bytes(8) + b"bye") if step.choice % 4 == 0 else b""

    def _wrong(self, step: Step) -> bytes:
        """Something that no client may send; seldom, because it ends the rest."""
        if step.choice % 5:
            return b""
        return raw(step.choice % 10, step.flags, self.number(step), bytes(step.choice))


def mutated(sent: bytes, changes: list[tuple[int, int, str]]) -> bytes:
    """Bytes of which some are others, are missing, or come twice."""
    found = bytearray(sent)
    for place, value, way in changes:
        at = len(http2.PREFACE) + place % max(1, len(found) - len(http2.PREFACE))
        if way == "flip":
            found[at : at + 1] = bytes((value,))
        elif way == "drop":
            del found[at : at + value]
        else:
            found[at:at] = found[at : at + value]
    return bytes(found)


def pieces(sent: bytes, sizes: list[int]) -> list[bytes]:
    """The bytes as reads of a socket bring them."""
    found, at = list[bytes](), 0
    for size in sizes:
        found.append(sent[at : at + size])
        at += size
    return [piece for piece in [*found, sent[at:]] if piece]
