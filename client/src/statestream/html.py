"""Small tables of HTML, as notebooks show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

MOST_ROWS = 20
"""Rows that are shown of a long table."""
_CAPTION = "<caption style='text-align:left;white-space:nowrap'>"


def facts(title: str, rows: Mapping[str, object]) -> str:
    """A title, and a line for each fact: its name and its value."""
    body = "".join(
        f"<tr><th style='text-align:left'>{escape(str(name))}</th>"
        f"<td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{_CAPTION}{escape(title)}</caption><tbody>{body}</tbody></table>"


def table(title: str, names: Sequence[str], rows: Sequence[Sequence[object]], count: int) -> str:
    """A title, names of columns and the first rows of `count`; says how many more there are."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows[:MOST_ROWS]
    )
    if count > MOST_ROWS:
        body += f"<tr><td colspan='{len(names)}'>… and {count - MOST_ROWS:,} more</td></tr>"
    return f"<table>{_CAPTION}{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
