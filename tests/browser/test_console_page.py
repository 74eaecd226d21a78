"""The console in a real browser: every view, with the keyboard, dark, at 360 px, and as axe-core judges it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import pytest

from statestream_server.access import tokens
from tests import services
from tests.support import forecasters, models, node, texts
from tests.support.serving import serving

FOLDER = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def test_people_look_at_models_and_sessions_and_try_them(tmp_path: Path) -> None:
    """STATESTREAM_PICTURES=docs/images has it draw the pictures of docs/console.md, too."""
    browser = services.require_binary("chromium")
    node.installed(FOLDER)
    folder = models.write(tmp_path / "models", "lstm", "scores")
    forecasters.write(folder)
    (folder / "letters" / "1").mkdir(parents=True)
    texts.write_pair(folder / "letters" / "1")
    path = tmp_path / "tokens.toml"
    path.write_text("")
    secret, _ = tokens.new(path, "acme", frozenset({tokens.STEP}), time.time() + 600, "")
    pictures = os.environ.get("STATESTREAM_PICTURES", "")
    async with contextlib.AsyncExitStack() as stack:
        plain = await stack.enter_async_context(serving(folder, http_port=0))
        port = plain.running.http_port
        command = [str(browser or "chromium"), f"http://127.0.0.1:{port}"]
        await _driven([*command, "", "", str(Path(pictures).resolve()) if pictures else ""])
    async with serving(models.write(tmp_path / "few", "lstm"), http_port=0, tokens=path) as guarded:
        await _driven([command[0], "", f"http://127.0.0.1:{guarded.running.http_port}", secret, ""])


async def _driven(arguments: list[str]) -> None:
    """Drives the browser; there is one server of this process at a time, because the tokens are the process'."""
    ran = await asyncio.create_subprocess_exec(
        "node",
        "console.mjs",
        *arguments,
        cwd=FOLDER,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await ran.communicate()
    finally:
        if ran.returncode is None:
            ran.kill()
    assert ran.returncode == 0, output.decode()
