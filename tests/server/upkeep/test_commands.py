"""The commands of docs/deploy.md about stores, as they stand there."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from statestream_server.stores.base import Key, Lasting
from statestream_server.upkeep.commands import store as command
from tests.server.upkeep.conftest import fill
from tests.support.pages import Block, run_by
from tests.support.serving import serving
from tests.support.speaker import Speaker


def run(block: Block, url: str) -> None:
    """Runs the commands of a block about another store; whoever is asked says yes."""
    for line in block.commands():
        words = shlex.split(line.replace("redis://127.0.0.1:6379/0", url))
        assert words[:2] == ["statestream", "store"]
        done = CliRunner().invoke(command, words[2:], input="y\n")
        assert done.exit_code == 0, (line, done.output)


async def test_the_page_backs_up(models_dir: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(models_dir)
    async with serving(models_dir, store=url) as local, Speaker(local.channel, "counter") as speaker:
        await speaker.open_one("a")
    block = run_by("docs/deploy.md", "tests/server/upkeep/test_commands.py::test_the_page_backs_up")
    await asyncio.to_thread(run, block, url)


async def test_the_page_erases(url: str, kept: Lasting) -> None:
    await fill(kept, *(Key("", "sunspots", id_) for id_ in ("customer-7/a", "customer-8/a")))
    block = run_by("docs/deploy.md", "tests/server/upkeep/test_commands.py::test_the_page_erases")
    await asyncio.to_thread(run, block, url)
    assert [record.key.id for record in await kept.list("", "", ("", ""), 10)] == ["customer-8/a"]
