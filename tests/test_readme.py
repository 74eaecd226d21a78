"""The READMEs and the documents do what they say: their commands run, their Python prints what they show.

    ```bash run       runs in a temporary folder
    ```bash serve     starts the server that the Python blocks call
    ```bash ask       runs beside that server
    ```bash compose   runs in tests/compose: it needs a container engine
    ```bash           is only shown, or run by a test that the comment above it names (tests/support/pages.py)
    ```python         runs; all blocks of one file in one interpreter, as if typed
    ```output         what the block before it prints

The blocks run as they stand, but for the port; the models are all there when the server starts, of which each page has
one of its own. The quick tests serve the example models of deploy/models, which the same recipes made, and train what
is not among them; the slow ones run all commands that train, and serve what these made. The Chinese README has the code
of the English one, but for comments. In what they print, a number with a decimal point may differ by `TOLERANCE` of it
and one unit: forecasts come from a network that was trained here, and training ends in other bits on another processor.
All else must be equal.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import COMMENT, FENCE, ROOT, Block, blocks, chosen

READMES = ["README.md", "README.zh-CN.md"]
SERVED = [*READMES, "docs/lessons/modes.md"]

EXAMPLES = ROOT / "deploy" / "models"


def run(*pages: str, trained: Sequence[str]) -> list[Any]:
    """Parameters of `served`: pages with the example models, and, where there is time, those that train their own."""
    quick = [pytest.param((page, "examples"), id=page) for page in pages]
    return quick + [pytest.param((page, "trained"), id=f"{page}-trained", marks=pytest.mark.slow) for page in trained]


LESSONS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "lessons").glob("*.md"))
TOLERANCE = 0.2
DECIMAL = re.compile(r"-?\d+\.\d+")
# Printed before each block, so that what it prints can be told from what the next one prints.
MARK = "\x1e"


def same(came: str, shown: str) -> bool:
    """Whether two texts are equal but for decimals within the tolerance."""
    if DECIMAL.sub("#", came) != DECIMAL.sub("#", shown):
        return False
    pairs = zip(DECIMAL.findall(came), DECIMAL.findall(shown), strict=True)
    return all(abs(float(a) - float(b)) <= TOLERANCE * abs(float(b)) + 1 for a, b in pairs)


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        "PATH": path,
        "COLUMNS": "100",
        "STATESTREAM_HOST": "127.0.0.1",
        "STATESTREAM_PORT": "0",
        "STATESTREAM_HTTP_PORT": "0",
        "STATESTREAM_STORE": f"sqlite:{folder / 'sessions.db'}",
    }


def outputs(parts: list[Block], address: str, folder: Path, before: str = "") -> list[str]:
    """What each Python block prints, in one interpreter."""
    # A block that hangs ends with a traceback that shows where.
    script = ["import faulthandler; faulthandler.dump_traceback_later(100, exit=True)", before]
    for block in parts:
        script += [f"print({MARK!r}, end='', flush=True)", block.text.replace("localhost:8001", address)]
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", "\n".join(script)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split(MARK)[1:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pages' commands ran, each once. They train at the same time: one thread each."""
    place = tmp_path_factory.mktemp("trained")
    text = "".join(block.text for page in SERVED for block in chosen(ROOT / page, "bash", "run"))
    all_at_once(list(dict.fromkeys(COMMENT.sub("", text).splitlines())), place)
    return place


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example models, and what the pages' commands make that is not among them."""
    place = tmp_path_factory.mktemp("examples")
    shutil.copytree(EXAMPLES, place / "models")
    text = "".join(block.text for page in SERVED for block in chosen(ROOT / page, "bash", "run"))
    lines = dict.fromkeys(COMMENT.sub("", text).splitlines())
    all_at_once([line for line in lines if not (EXAMPLES / line.split()[2]).exists()], place)
    return place


def all_at_once(lines: list[str], place: Path) -> list[str]:
    """What commands print that run at the same time; none may fail."""
    with ExitStack() as stack:
        running = [stack.enter_context(started("exec " + line, place, stderr=subprocess.STDOUT)) for line in lines]
        said = [process.communicate(timeout=300)[0] for process in running]
        for line, process, text in zip(lines, running, said, strict=True):
            assert process.returncode == 0, f"{line}\n{text}"
    return said


@contextmanager
def started(line: str, place: Path, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A command of the README; killed at the end if it still runs."""
    command = ["bash", "-euc", line]
    with subprocess.Popen(
        command, cwd=place, env=environment(place), stdout=subprocess.PIPE, text=True, **more
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Served:
    """A page, and the server that it starts: where that is, and the folder it runs in."""

    page: Path
    address: str
    folder: Path


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server that a page starts, on copies of the models and with no sessions."""
    name, models = request.param
    page = ROOT / name
    folder = tmp_path_factory.mktemp(page.stem)
    shutil.copytree(request.getfixturevalue(models) / "models", folder / "models")
    (block,) = chosen(page, "bash", "serve")
    line = COMMENT.sub("", block.text).strip()
    with (folder / "server.log").open("w") as log, started("exec " + line, folder, stderr=log) as server:
        assert server.stdout is not None
        ready = server.stdout.readline()
        port = re.search(r"gRPC on 127\.0\.0\.1:(\d+)", ready)
        assert port, f"{ready!r}; {(folder / 'server.log').read_text()}"
        yield Served(page, f"127.0.0.1:{port.group(1)}", folder)
        server.terminate()
        server.communicate(timeout=30)


def check(path: Path, parts: list[Block], printed: list[str]) -> None:
    assert len(printed) == len(parts)
    for block, came in zip(parts, printed, strict=True):
        assert block.output is not None or not came, f"{path.name} does not show what this prints: {came!r}"
        shown = block.output or ""
        assert same(came, shown), f"{path.name} shows\n{shown}\nbut this printed\n{came}\nin\n{block.text}"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("served", run(READMES[0], SERVED[-1], trained=SERVED), indirect=True)
def test_page_prints_what_it_shows(served: Served) -> None:
    parts = chosen(served.page, "python", "")
    assert len(parts) > 3
    check(served.page, parts, outputs(parts, served.address, served.folder))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("served", run(READMES[0], trained=READMES), indirect=True)
def test_readme_commands_answer(served: Served) -> None:
    (block,) = chosen(served.page, "bash", "ask")
    lines = COMMENT.sub("", block.text).replace("localhost:8001", served.address).splitlines()
    for line, said in zip(lines, all_at_once(lines, served.folder), strict=True):
        assert said.strip(), line


def test_readmes_differ_in_prose_alone() -> None:
    english, chinese = ((ROOT / name).read_text("utf-8") for name in READMES)

    def code(page: str) -> list[tuple[str, ...]]:
        return [
            (block.language, block.role, COMMENT.sub("", block.text), block.output or "")
            for block in blocks(ROOT / page)
        ]

    assert code("README.md") == code("README.zh-CN.md")
    for what in (r"^#+ ", r"^\| ", r"^!\["):
        assert len(re.findall(what, english, re.MULTILINE)) == len(re.findall(what, chinese, re.MULTILINE)), what
    for what in (r"\]\(([^)]+)\)", r"`([^`\n]+)`", r"\d+(?:[.,]\d+)+"):
        found = [sorted(set(re.findall(what, FENCE.sub("", text))) - set(READMES)) for text in (english, chinese)]
        assert found[0] == found[1], what


def test_protocol_example_has_these_bytes(tmp_path: Path) -> None:
    path = ROOT / "docs" / "protocol.md"
    parts = chosen(path, "python", "")
    assert parts
    check(path, parts, outputs(parts, "", tmp_path))


def test_what_the_protocol_names_is_there() -> None:
    from statestream.errors import REASONS
    from statestream.v1 import inference_pb2, session_pb2

    text = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    values = {
        value.name.removeprefix("OPEN_MODE_")
        for file in (inference_pb2, session_pb2)
        for enum in file.DESCRIPTOR.enum_types_by_name.values()
        for value in enum.values
    }
    assert set(re.findall(r"`([A-Z][A-Z_]+)`", text)) <= {*REASONS, *values}
    messages = {*inference_pb2.DESCRIPTOR.message_types_by_name, *session_pb2.DESCRIPTOR.message_types_by_name}
    assert {name for name in messages if name.endswith("Frame")} <= set(re.findall(r"`(\w+)`s?", text))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("served", run(READMES[0], trained=READMES[:1]), indirect=True)
def test_snapshot_reads_as_described(served: Served) -> None:
    path = ROOT / "docs" / "snapshots.md"
    before = f"""
import statestream
from statestream_export.recipes.sunspots import TEST_FROM, series
client = statestream.connect("{served.address}")
past = series().numbers[: series().at(TEST_FROM), None]
snapshot = client.session("sunspots", history=past).snapshot()
"""
    parts = chosen(path, "python", "")
    check(path, parts, outputs(parts, served.address, served.folder, before))


@pytest.mark.parametrize("name", [*READMES, *LESSONS, "docs/protocol.md", "docs/snapshots.md"])
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{name} links to {target}, which is not there"


def test_decimals_may_differ_a_little_and_all_else_not_at_all() -> None:
    assert same("position 3, 10.5\n", "position 3, 11.5\n")
    assert not same("position 3, 10.5\n", "position 4, 10.5\n")
    assert not same("position 3, 10.5\n", "position 3, 20.5\n")
