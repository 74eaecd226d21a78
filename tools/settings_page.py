"""Writes docs/settings.md: every setting of `statestream serve`, from its flags; `--check` says whether the page is so.

python tools/settings_page.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from made_pages import write_or_check

from statestream_server import configuration
from statestream_server.cli import serve
from statestream_server.settings import RELOADABLE

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

_HEAD: Final = f"""\
# Settings

What `statestream serve` can be told. Written by `python tools/settings_page.py` from its flags;
[operations.md](operations.md) says when to change which.

A setting may come from four places; the first that has it counts:

1. its flag,
2. its variable in the environment,
3. the TOML file that `--config` or `STATESTREAM_CONFIG` names, else `{configuration.DEFAULT_FILE}` if it is there
   (`--config=` reads none),
4. its default.

A key of the file is the flag's name without its dashes before it; on and off are `true` and `false`:

```toml
models = ["/srv/statestream/models"]
store = "redis://127.0.0.1:6379/0?password_file=/run/secrets/redis"
checkpoint-interval = 10
retention = ["2592000", "sunspots=86400"]
http = false
```

`statestream config` takes what `serve` takes, starts nothing, and prints every setting, its value, and the flag, the
variable or FILE:KEY that said so; with `--json` an object with `value`, `source` and `from` for each. Passwords in a
store's address are printed as `***`.

A key that is no setting, a value of another kind or out of range, and a variable `STATESTREAM_…` that nobody reads end
the start with a message that names it. Variables that Kubernetes makes of Services (`STATESTREAM_…_SERVICE_HOST`) and
those of the client (`STATESTREAM_ADDRESS`, `STATESTREAM_TOKEN`) are let be.

SIGHUP reads the file anew and takes over what is marked so below; where anything else differs, nothing changes. The
environment of a process that runs stays what it was, so what is to change belongs in the file.
"""


def page() -> str:
    """The page."""
    return "\n".join([_HEAD, *_table(), ""])


def _table() -> Iterator[str]:
    yield "| key | variable | values | default | with SIGHUP | what it is |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for one in configuration.settings(serve):
        reloadable = "yes" if str(one.name) in {*RELOADABLE, "log_level"} else ""
        text = one.help or "" if isinstance(one, click.Option) else "Where models lie: files, and folders of them."
        cells = [f"`{configuration.key(one)}`", f"`{one.envvar}`", _values(one.type), _default(one), reloadable, text]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(kind: click.ParamType[Any]) -> str:
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{one}`" for one in kind.choices)
    if isinstance(kind, click.types.BoolParamType):
        return "`true`, `false`"
    if isinstance(kind, click.IntRange | click.FloatRange):
        number = "whole number" if isinstance(kind, click.IntRange) else "number"
        return f"{number}, {kind.min:,} or more" if kind.max is None else f"{number}, {kind.min:,} to {kind.max:,}"
    return "path" if isinstance(kind, click.Path) else "text" if kind is click.STRING else kind.name


def _default(parameter: click.Parameter) -> str:
    value = parameter.to_info_dict().get("default") if isinstance(parameter, click.Option) else None
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    if value is None or value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), "the flags say"))
