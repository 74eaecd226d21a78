"""What `make docs` makes of the pages: files of the checkout that they link to, and the command's help, become pages.

mkdocs calls the functions `on_…` (hooks in mkdocs.yml). Pages are written to be read in the checkout as well, where a
link may lead to any file of it: on the site a Markdown file or an example is a page under checkout/, and of anything
else the name stands there without a link.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import click
from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).resolve().parents[1]
DOCS: Final = ROOT / "docs"
_LINK: Final = re.compile(r"(!?)\[([^\]\[]*(?:\[[^\]]*\][^\]\[]*)*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_FENCE: Final = re.compile(r"^( *)```(\w+)(?: \w+)?$", re.MULTILINE)
_CODE: Final = re.compile(r"^( *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_NOT_RUN: Final = re.compile(r"^ *(?:#|//) Not run by any test: .*\n", re.MULTILINE)
_PAGES: Final = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples/**/*.md")
_EXAMPLES: Final = ("examples/*/*.py", "examples/*/*.js")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are not under docs/."""
    for pattern in _PAGES:
        for path in sorted(ROOT.glob(pattern)):
            if "node_modules" not in path.parts:
                name = f"checkout/{path.relative_to(ROOT)}"
                files.append(File.generated(config, name, content=path.read_text("utf-8")))
    for pattern in _EXAMPLES:
        for path in sorted(ROOT.glob(pattern)):
            language = {".py": "python", ".js": "js"}[path.suffix]
            text = f"# {path.name}\n\n```{language}\n{path.read_text('utf-8')}```\n"
            files.append(File.generated(config, f"checkout/{path.relative_to(ROOT)}.md", content=text))
    files.append(File.generated(config, "reference/cli.md", content=command_page()))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """A page as the site has it: links as above, and blocks without what says who runs them."""
    return rendered(markdown, page.file.src_uri, {file.src_uri for file in files})


def rendered(markdown: str, uri: str, known: set[str]) -> str:
    """The text of the page `uri` of a site with the pages and files `known`."""
    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(lambda found: _link(found, uri, known), part) for part in parts[::2]]
    parts[1::2] = [_NOT_RUN.sub("", part) for part in parts[1::2]]  # Of no use to who reads it.
    return _FENCE.sub(lambda found: f"{found[1]}```{'text' if found[2] == 'output' else found[2]}", "".join(parts))


def _link(found: re.Match[str], uri: str, known: set[str]) -> str:
    image, text, target, anchor = found[1], found[2], found[3], found[4] or ""
    if "://" in target or target.startswith("mailto:"):
        return found[0]
    # Where the page lies in the checkout, and where the link leads from there.
    here = ROOT / uri.removeprefix("checkout/") if uri.startswith("checkout/") else DOCS / uri
    there = Path(os.path.normpath(here.parent / target))
    if there.is_relative_to(DOCS):
        name = str(there.relative_to(DOCS))
        if there.is_dir():
            return text
    else:
        name = f"checkout/{os.path.relpath(there, ROOT)}"
        if there.is_dir():
            name += "/README.md"
        elif not name.endswith(".md"):
            name += ".md"
        if name == "checkout/README.md":
            name, anchor = "index.md", ""  # Another first page, with other headings.
        if name not in known and there.exists():
            return text if not image else ""
    return f"{image}[{text}]({os.path.relpath(name, os.path.dirname(uri) or '.')}{anchor})"


def command_page() -> str:
    """The help of `statestream` and of all its subcommands, as a page."""
    from statestream.command.group import Deferred, main

    lines = ["# All subcommands", "", "What each says with `--help`. [The command](../command.md) has examples.", ""]

    def add(command: click.Command, name: str, parent: click.Context | None) -> None:
        if isinstance(command, Deferred):
            command = command.load()
        context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
        context.help_option_names = ["-h", "--help"]
        lines.extend([f"## {context.command_path}", "", "```text", command.get_help(context).strip(), "```", ""])
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                if (found := command.get_command(context, each)) is not None and not found.hidden:
                    add(found, each, context)

    add(main, "statestream", None)
    return "\n".join(lines)
