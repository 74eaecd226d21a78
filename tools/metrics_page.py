"""Writes docs/metrics.md: every metric that a server tells, from its list; `--check` says whether the page is so.

python tools/metrics_page.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from made_pages import write_or_check

from statestream_server.edges.http import families

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

_HEAD: Final = """\
# Metrics

What a server tells Prometheus at `/metrics` of its HTTP port (`--http-port`). Written by `python tools/metrics_page.py`
from the list in the server; [operations.md](operations.md) says what to look at, and what each alert means.

Seconds and bytes are without prefixes. Counters go on until the process ends or the version is unloaded. The buckets
of histograms are powers of two: of a microsecond for calls and batches, of a millisecond for checkpoints and the loop.
Of several workers (`--workers`) every series has the label `worker`. `model` is the name of a model that serves; calls
that name another are counted under an empty one, so that callers make no series.
"""


def page() -> str:
    """The page."""
    return "\n".join([_HEAD, *_tables()])


def _tables() -> Iterator[str]:
    for title, group in families.GROUPS.items():
        yield f"## {title}\n"
        yield "| metric | kind | labels | what it says |"
        yield "| --- | --- | --- | --- |"
        for one in group:
            labels = ", ".join(f"`{label}`" for label in one.labels)
            labels += f" ({one.values})" if one.values and one.kind != "info" else ""
            yield f"| `{one.shown}` | {one.kind} | {labels} | {one.text} |"
        yield ""


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), "the server tells"))
