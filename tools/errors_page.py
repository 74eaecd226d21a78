"""Writes docs/errors.md: every error that a caller can meet, from its class; `--check` says whether the page is so.

python tools/errors_page.py [--check]
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from made_pages import write_or_check

from statestream.contract import errors

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "errors.md"

_HEAD: Final = """\
# Errors

Every error says what came, what was expected and what to do. In Python it is an exception of the class below, and all
of them are a `statestream.StatestreamError`: `reason` (the stable name, which programs compare), `message`, `metadata`,
`retry_after`. Over gRPC it is a status with the code below and the reason in its `ErrorInfo`
([protocol](protocol.md#errors)). A connection that breaks is no error: the client connects again and sends again what
the server does not have.

Written by `python tools/errors_page.py` from the classes.

<!-- run by tests/docs/test_errors_page.py::test_the_block_runs -->
```python
import statestream

with statestream.local("deploy/models/sunspots") as client:
    try:
        client.session("sunspots").step([1, 2])
    except statestream.BadTensor as error:
        print(error.reason, error.code.name, error.metadata["field"])
```

```output
BAD_TENSOR INVALID_ARGUMENT x
```

## All of them
"""

_TROUBLES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "Nothing answers": (
        "Look at the address, and whether the server is ready.",
        ("SERVER_UNAVAILABLE", "DRAINING"),
    ),
    "The model is not there": (
        "`statestream models HOST:8001` lists what serves, and why the rest does not;"
        " `statestream inspect FILE` says what a server makes of a file ([where models lie](models.md)).",
        ("MODEL_NOT_FOUND", "MODEL_CHANGED", "MODEL_IN_USE", "UNSUPPORTED", "UNIMPLEMENTED"),
    ),
    "An input is refused": (
        "The message has the shape that came and the one that is expected. Nothing was applied; correct it and go on.",
        ("BAD_TENSOR", "BAD_FRAME", "SNAPSHOT_INVALID", "NON_FINITE_STATE"),
    ),
    "Somebody else has the session, or it is not there": (
        "One session has one writer. Look for a second program with the same id, or a retry of your own that opens"
        " what another part still has ([exactly once](explanation/exactly-once.md)).",
        (
            *("SESSION_NOT_FOUND", "SESSION_EXISTS", "ALREADY_OPEN", "SESSION_MOVED", "NOT_OWNER"),
            *("POSITION_GAP", "POSITION_CONFLICT", "ALREADY_APPLIED"),
        ),
    ),
    "Steps are gone, or cannot be kept": (
        "Read your inputs again from the position that the error names. Where it must not happen, look at the store and"
        " at `--durability` ([what durable means](explanation/durable.md)).",
        ("STATE_LOST", "RECORD_TOO_LARGE", "STORE_UNAVAILABLE"),
    ),
    "There is too much": (
        "Wait `retry_after` seconds, ask for less at a time, or raise the limit that the message names"
        " ([limits](limits.md)).",
        ("OVERLOADED", "TOO_MANY_SESSIONS", "WINDOW_FULL", "ANSWER_TOO_LARGE", "SLOW_READER"),
    ),
    "It is not allowed": (
        "The server asks for tokens ([security](security.md)).",
        ("UNAUTHENTICATED", "PERMISSION_DENIED"),
    ),
    "It was closed": ("By this program: a session was used behind its `with`, or after its client.", ("CLOSED",)),
    "A fault of the server": (
        "Its log has the details; please report it.",
        ("INTERNAL", "QUARANTINED"),
    ),
}


def page() -> str:
    """The page."""
    return "\n".join([_HEAD, *_table(), *_troubles()])


def leaves() -> dict[str, type[errors.StatestreamError]]:
    """The reasons that callers meet, by name: those of classes that are no mere family, and OVERLOADED."""
    return {
        reason: kind
        for reason, kind in sorted(errors.REASONS.items())
        if (not kind.__subclasses__() or reason == "OVERLOADED") and kind.__module__ == errors.__name__
    }


def _table() -> Iterator[str]:
    yield "| reason | class | code | what it is, and what to do |"
    yield "| --- | --- | --- | --- |"
    for reason, kind in leaves().items():
        told = " ".join((inspect.getdoc(kind) or "").split())
        yield f"| `{reason}` | `{kind.__name__}` | {kind.code.name} | {told} |"
    yield ""


def _troubles() -> Iterator[str]:
    yield "## Troubleshooting"
    yield ""
    for title, (what, reasons) in _TROUBLES.items():
        yield f"### {title}"
        yield ""
        yield f"{', '.join(f'`{reason}`' for reason in reasons)}. {what}"
        yield ""


def troubles() -> list[str]:
    """The reasons that Troubleshooting names."""
    return [reason for _, reasons in _TROUBLES.values() for reason in reasons]


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), "the classes say"))
