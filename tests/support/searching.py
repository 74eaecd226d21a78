"""Searches by hypothesis in two sizes: few examples for the quick tests, many in a slow test of the same name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis.strategies import SearchStrategy


def searched(
    few: int, many: int, *always: dict[str, Any], **drawn: SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Any]:
    """Makes a test of a function: with `few` examples, and a slow one with `many`.

    Args:
        few: Examples of the quick test.
        many: Examples of the slow one.
        always: Arguments that each of the two tries first: what once failed.
        drawn: How the function's arguments are drawn.
    """

    def decorate(function: Callable[..., None]) -> Any:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(examples: int) -> None:
            search = given(**drawn)(function)
            for arguments in always:
                search = example(**arguments)(search)
            settings(max_examples=examples, deadline=None)(search)()

        functools.update_wrapper(test, function, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        vars(test).pop("__wrapped__")  # pytest would take the function's arguments for fixtures.
        return test

    return decorate
