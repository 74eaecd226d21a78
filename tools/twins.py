"""Generates the synchronous twin of the client from the asyncio one, or checks that the committed one is fresh.

    python tools/twins.py           writes what is generated of client/src/statestream/sync
    python tools/twins.py --check   compares, changes nothing, exits 1 where it differs

Each module of aio/ is written once, in async form; those in OWN have no other form, or one that is written by hand. Of
the others, this gives the synchronous form:

- `async` and `await` go; what is awaited but not called, `await done`, becomes `done.wait()`.
- Names of NAMES become those of their other form. `Awaitable[T]` and `Opening[T]` become T, and
  `X | AsyncIterable[X]` becomes X.
- A statement, or a decorator, whose first line ends with `# asyncio only` goes, with all that is in it.
- Passages of TEXTS, mostly of docstrings, become others. One that is found nowhere is a fault of the table.
- Imports that nothing uses any more go, loops that only yield become `yield from`, and ruff lays out the rest.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
CLIENT: Final = ROOT / "client" / "src" / "statestream"
AIO: Final = CLIENT / "aio"
SYNC: Final = CLIENT / "sync"

OWN: Final = {
    "__init__.py", "awaiting.py", "begun.py", "link.py", "opening.py", "status.py",
    "waiting.py", "wakeup.py", "writing.py",
}  # fmt: skip
"""Modules of aio/ that are not carried over; sync/ has its own of some of these names."""

ONLY: Final = "# asyncio only"

NAMES: Final = {
    "AsyncIterable": "Iterable",
    "AsyncIterator": "Iterator",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "asynccontextmanager": "contextmanager",
}

TEXTS: Final = {
    "statestream.aio": "statestream.sync",
    "grpc.aio.": "grpc.",
    "an asyncio client": "a synchronous client",
    "The asyncio client": "The synchronous client",
    "the asyncio client": "the synchronous client",
    ", by `await` or `async with`": "",
    "on the loop.": "from the shard's own thread: it must not\n            call the client.",
    ", for the loop that runs then": "; usable from any thread",
    "to be used on the loop that made it": "methods may be called from any thread",
    "When cancelled": "On Ctrl-C",
    "; an iterable or an asynchronous one": "",
    "lists, arrays and\n                asynchronous iterables": "lists and\n                arrays",
}

LEFT: Final = re.compile(r"\b(aio|asyncio|async|asynchronous|await\w*|cancelled|loop|tasks?)\b|\bAsync", re.IGNORECASE)
"""What a synchronous client has nothing of."""


class Edit(NamedTuple):
    """Some characters that become others."""

    start: int
    end: int
    new: str = ""


def synchronous(source: str) -> str:
    """The synchronous form of a module's code, not laid out."""
    source = edited(source, only_asyncio(source))
    return edited(source, without_waits(source))


def only_asyncio(source: str) -> Iterator[Edit]:
    """What goes because it is marked."""
    lines = source.splitlines(keepends=True)
    starts = line_starts(source)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt):
            continue
        for part in (node, *getattr(node, "decorator_list", ())):
            if lines[part.lineno - 1].rstrip().endswith(ONLY):
                yield Edit(starts[part.lineno - 1], starts[part.end_lineno or part.lineno])


def without_waits(source: str) -> Iterator[Edit]:
    """How keywords, names and types change."""
    starts = line_starts(source)
    tokens = [
        (token.type, token.string, starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1])
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
    ]
    for number, (kind, name, start, end) in enumerate(tokens):
        if kind != tokenize.NAME:
            continue
        _, following, then, _ = tokens[number + 1]
        if name in ("async", "await"):
            yield Edit(start, then)
        if name == "await":
            last = number + 1
            while tokens[last + 1][1] == ".":
                last += 2
            if tokens[last + 1][1] not in ("(", "["):
                yield Edit(tokens[last][3], tokens[last][3], ".wait()")
        elif name in ("Awaitable", "Opening") and following == "[":
            closing = matching(tokens, number + 1)
            yield Edit(start, tokens[number + 1][3])
            yield Edit(tokens[closing][2], tokens[closing][3])
        elif name == "AsyncIterable" and tokens[number - 1][1] == "|":
            yield Edit(tokens[number - 2][3], tokens[matching(tokens, number + 1)][3])
        elif name in NAMES:
            yield Edit(start, end, NAMES[name])


def matching(tokens: list[tuple[int, str, int, int]], opening: int) -> int:
    """Where the bracket closes that opens at a token."""
    depth = 0
    for number in range(opening, len(tokens)):
        depth += {"[": 1, "]": -1}.get(tokens[number][1], 0)
        if not depth:
            return number
    raise AssertionError("the bracket never closes")


def line_starts(source: str) -> list[int]:
    """Where each line starts, and where the text ends."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def edited(source: str, edits: Iterator[Edit]) -> str:
    """A text with what changes in it."""
    for start, end, new in sorted(edits, reverse=True):
        source = source[:start] + new + source[end:]
    return source


def laid_out(source: str, name: str) -> str:
    """Code as ruff wants it, without imports that nothing uses."""
    ruff = [str(Path(sysconfig.get_path("scripts"), "ruff"))]
    where = ["--quiet", "--stdin-filename", str(SYNC / name), "-"]
    for command in (["check", "--fix-only", "--unsafe-fixes", "--select", "F401,I,UP028"], ["format"]):
        source = subprocess.run(
            [*ruff, *command, *where], input=source, capture_output=True, encoding="utf-8", check=True
        ).stdout
    return source


def generate() -> dict[str, str]:
    """The generated modules, by file name."""
    found, unused = {}, set(TEXTS)
    for path in sorted(AIO.glob("*.py")):
        if path.name in OWN:
            continue
        source = path.read_text(encoding="utf-8")
        for passage, new in TEXTS.items():
            if passage in source:
                unused.discard(passage)
                source = source.replace(passage, new)
        header = f"# Generated from statestream/aio/{path.name} by `make twins`; change that one.\n"
        found[path.name] = laid_out(header + synchronous(source), path.name)
    faults = [f"TEXTS has {passage!r}, which no module has" for passage in sorted(unused)]
    for name, source in found.items():
        for number, line in enumerate(source.splitlines()[1:], 2):
            if left := LEFT.search(line):
                faults.append(f"sync/{name}:{number} would still say {left[0]!r}: {line.strip()}")
    if faults:
        sys.exit("twins: " + "\ntwins: ".join(faults))
    return found


def main() -> int:
    """Generates or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description="Generates or checks the synchronous twin of the client.")
    parser.add_argument("--check", action="store_true", help="compare with the committed modules, change nothing")
    checking = parser.parse_args().check
    fresh = generate()
    present = {path.name: path.read_text(encoding="utf-8") for path in SYNC.glob("*.py") if path.name not in OWN}
    differing = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
    if checking:
        if differing:
            names = ", ".join(f"sync/{name}" for name in differing)
            print(f"twins: not what aio/ gives: {names}; run `make twins`", file=sys.stderr)
        else:
            print(f"twins: {len(fresh)} modules are fresh")
        return 1 if differing else 0
    for name in differing:
        if name in fresh:
            (SYNC / name).write_text(fresh[name], encoding="utf-8")
        else:
            (SYNC / name).unlink()
        print(f"twins: {'wrote' if name in fresh else 'removed'} {(SYNC / name).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
