"""The log: plain lines or JSON on standard error, with what is known of a call, and floods of one warning folded."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any, Final

from statestream_server import caller

FIELDS: Final = ("model", "version", "session", "tenant", "request", "seconds")
"""What a line may say beside its message, where it is known: `log.warning(…, extra={"model": …})`."""
_BURST: Final = 10
"""Lines of one warning that are written in a window; what comes beyond them is counted."""
_WINDOW_SECONDS: Final = 60.0
_OF_FILES: Final = frozenset({"statestream_server.registry"})
"""Whose lines say what is wrong with one file each, once: none of them stands for another."""


def to_stderr(level: str, form: str = "text") -> None:
    """Sends the log to standard error.

    Args:
        level: How much: debug, info, warning or error.
        form: "json" for an object a line; "text" for colours on a terminal and plain lines elsewhere.
    """
    handler: logging.Handler
    if form == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(Json())
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(Folding(handler))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class Json(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        who = caller.current.get()
        if who is not caller.ANYBODY:
            found["tenant"] = who.tenant
            if who.trace is not None:
                found["trace"] = who.trace.id
        found |= {name: value for name in FIELDS if (value := getattr(record, name, None)) not in (None, "")}
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False, default=str)


class Folding(logging.Filter):
    """Lets the first lines of a warning through, counts the others, and tells how many they were.

    One warning is one place in the code with one text, before values are put into it. What is below a warning is never
    folded: whoever asks for it wants all of it. Nor is what is said of a file that cannot be served.
    """

    def __init__(self, handler: logging.Handler, window: float = _WINDOW_SECONDS) -> None:
        """Nothing was written yet; `handler` gets the lines that tell of others, `window` seconds after the first."""
        super().__init__()
        self._handler = handler
        self._window = window
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], list[Any]] = {}
        """By logger and text: when the window began, lines in it, the last one that was not written."""
        self._timer: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.levelno < logging.WARNING or getattr(record, "folded", False) or record.name in _OF_FILES:
            return True
        now, key = time.monotonic(), (record.name, str(record.msg))
        self._tell(now)
        with self._lock:
            seen = self._seen.get(key)
            if seen is None:
                seen = self._seen[key] = [now, 0, None]
            seen[1] += 1
            if seen[1] <= _BURST:
                return True
            seen[2] = record
            if self._timer is None:
                self._timer = threading.Timer(max(0.0, seen[0] + self._window - now) + 0.01, self._due)
                self._timer.daemon = True
                self._timer.start()
        return False

    def close(self) -> None:
        """Tells of no more that was left out."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def join(self) -> None:
        """Waits until all that was left out is told."""
        while (timer := self._timer) is not None:
            timer.join()

    def _due(self) -> None:
        with self._lock:
            self._timer = None
        self._tell(time.monotonic())
        with self._lock:
            left = [seen[0] for seen in self._seen.values() if seen[2] is not None]
            if left and self._timer is None:
                self._timer = threading.Timer(max(0.0, min(left) + self._window - time.monotonic()) + 0.01, self._due)
                self._timer.daemon = True
                self._timer.start()

    def _tell(self, now: float) -> None:
        """Writes of the windows that are over how much was left out."""
        with self._lock:
            over = [(key, seen) for key, seen in self._seen.items() if now - seen[0] >= self._window]
            for key, _ in over:
                del self._seen[key]
        for _, (began, count, last) in over:
            if last is None:
                continue
            text = f"{last.getMessage()} … {count - _BURST} times more in {now - began:.0f} s"
            told = logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, text, None, None)
            told.folded = True
            for name in FIELDS:
                if hasattr(last, name):
                    setattr(told, name, getattr(last, name))
            self._handler.handle(told)
