"""Growable columns: NumPy arrays of one length that grow together. Nothing here knows what they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
"""Row or entry numbers."""
Positions = npt.NDArray[np.uint64]
"""Positions and epochs."""
Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


def grown(array: Array, capacity: int, fill: object) -> Array:
    """A copy of `array` with `capacity` items along axis 0, the new ones set to `fill`."""
    # Zeros come untouched from the system and cost no memory until they are written.
    bigger = np.zeros((capacity, *array.shape[1:]), array.dtype)
    bigger[: len(array)] = array
    if fill:
        bigger[len(array) :] = fill
    return bigger


def every(mask: Bools) -> bool:
    """Whether all of a mask hold. For few, NumPy's own reduction costs thirty times what looking for a byte does."""
    return 0 not in mask.tobytes()


def some(mask: Bools) -> bool:
    """Whether one of a mask holds; see `every`."""
    return 1 in mask.tobytes()


def same(one: Array, other: Array) -> bool:
    """Whether two columns of one dtype and length hold the same numbers; see `every`."""
    return one.tobytes() == other.tobytes()


_numbers = np.arange(4096)
_numbers.flags.writeable = False


def counting(count: int, first: int = 0) -> Ints:
    """The numbers first … first + count - 1; from 0 a view of numbers that are kept, not to be written to."""
    global _numbers
    if first:
        return np.arange(first, first + count)
    if count > len(_numbers):
        _numbers = np.arange(max(count, 2 * len(_numbers)))
        _numbers.flags.writeable = False
    return _numbers[:count]


def span(places: Ints) -> slice | Ints:
    """Distinct ascending numbers, as a slice where they are consecutive: what it cuts out is a view."""
    count = len(places)
    if count and int(places[-1]) - int(places[0]) == count - 1:
        return slice(int(places[0]), int(places[0]) + count)
    return places


class Freelist:
    """Numbers 0 … capacity - 1 that are handed out and taken back, lowest first while fresh."""

    def __init__(self, first: int = 0) -> None:
        """An empty list; numbers below `first` are never handed out."""
        self._stack = np.empty(0, np.int64)
        self._size = 0
        self._fresh = first
        self.capacity = first

    def __len__(self) -> int:
        return self._size + self.capacity - self._fresh

    def grow(self, capacity: int) -> None:
        """Makes the numbers up to `capacity` - 1 available."""
        self._stack = grown(self._stack, capacity, 0)
        self.capacity = capacity

    def take(self, count: int) -> Ints:
        """Hands out `count` numbers; the caller made sure that there are as many."""
        reused = min(count, self._size)
        self._size -= reused
        numbers = np.empty(count, np.int64)
        numbers[:reused] = self._stack[self._size : self._size + reused]
        numbers[reused:] = np.arange(self._fresh, self._fresh + count - reused)
        self._fresh += count - reused
        return numbers

    def give(self, numbers: Ints) -> None:
        """Takes numbers back."""
        self._stack[self._size : self._size + len(numbers)] = numbers
        self._size += len(numbers)
