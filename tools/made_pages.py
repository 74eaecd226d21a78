"""Pages that are made of the code: written, or compared with what is there."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(page: Path, made: str, source: str) -> int:
    """Writes a page; with `--check` on the command line, compares it.

    Args:
        page: Where it lies.
        made: What it is to say.
        source: What it is made of, as a message has it: "the classes say".

    Returns:
        The exit code: 1 where the page is another.
    """
    if "--check" not in sys.argv[1:]:
        page.write_text(made, "utf-8")
    elif page.read_text("utf-8") != made:
        print(f"{page.name} is not what {source}; run python {Path(sys.argv[0]).as_posix()}", file=sys.stderr)
        return 1
    return 0
