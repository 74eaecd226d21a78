"""Writes docs/metrics.md: every metric that a server tells, from its list; `--check` says whether the page is so.

python tools/metrics_page.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

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


def main() -> int:
    """Writes or compares; 1 where the page is another."""
    made = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text("utf-8") != made:
            print(f"{PAGE.name} is not what the server tells; run python tools/metrics_page.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(made, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
