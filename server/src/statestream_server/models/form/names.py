"""Names: whether an output's name says that it is the next value of an input. By one rule, without a list of words.

Two names agree where one becomes the other by one part that is added, left out or changed (`h` → `hn`, `state` →
`new_state`, `r1i` → `r1o`, `cache_len` → `cache_next_len`), and their numbers are the same. Names never say alone that
something is memory: they choose among what types and the graph allow.
"""

from __future__ import annotations

import re
from typing import Final

_PARTS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_MOST_ADDED: Final = 2


def likeness(old: str, new: str) -> float:
    """How much an output's name is like an input's: 0 where they do not agree, 1 where they are the same."""
    one, other = _parts(old), _parts(new)
    numbers = [[part for part in parts if part.isdigit()] for parts in (one, other)]
    if all(numbers) and numbers[0] != numbers[1]:
        return 0.0
    first = _common(one, other)
    last = _common(one[first:][::-1], other[first:][::-1])
    stem = one[:first] + one[len(one) - last :]
    changed = sorted((len(one) - first - last, len(other) - first - last))
    letters = sum(map(len, stem))
    if any(part.isalpha() for part in stem) and (changed == [1, 1] or (not changed[0] and changed[1] <= _MOST_ADDED)):
        return letters / max(len("".join(one)), len("".join(other)))
    return _short(*("".join(part for part in parts) for parts in (one, other)))


def _short(one: str, other: str) -> float:
    """Of names of a letter or two, a letter that is added or changed is a part: h0 → hn, c → cn."""
    if max(len(one), len(other)) > 2 or not one or one[:1] != other[:1] or not other.isalpha():
        return 0.0
    return 1 / max(len(one), len(other))


def _parts(name: str) -> list[str]:
    return [part.lower() for part in _PARTS.findall(name)]


def _common(one: list[str], other: list[str]) -> int:
    """How many parts are the same from the start."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count
