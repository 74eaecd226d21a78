"""Each distribution, installed alone from what `make dist` made into an empty environment, imports and runs, and has
there what its SBOM lists."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import setup_venv
from packaging.utils import canonicalize_name

from tests.support import models
from tests.support.pages import ROOT, run_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    # The latter are for who has pytest, or the extra tracing.
    if not name.endswith(("__main__", "statestream_server.testing", "statestream_server.tracing")):
        importlib.import_module(name)
print(len(names), *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def listed(released: Path, name: str) -> set[str]:
    """What an SBOM says that an installation has."""
    bill = json.loads((released / f"sbom-{name}.cdx.json").read_text("utf-8"))
    parts = [bill["metadata"]["component"], *bill["components"]]
    return {canonicalize_name(part["name"]) for part in parts}


class Environment:
    """An empty virtual environment that sees nothing of this one."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.wheels = wheels
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"

    def install(self, *requirements: str, constraints: Path = ROOT / "constraints.txt") -> None:
        options = ["--quiet", "--disable-pip-version-check", "--find-links", str(self.wheels), "-c", str(constraints)]
        self.run(sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", *options, *requirements)

    def run(self, *command: str | Path) -> str:
        """Runs a command and returns what it printed; a command that fails fails the test with its output."""
        env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
        ran = subprocess.run(command, capture_output=True, text=True, env=env, cwd=self.bin)
        assert ran.returncode == 0, f"{command} exited {ran.returncode}:\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def import_all(self, package: str) -> set[str]:
        """Imports every module of a package; returns the names of all packages that this loaded."""
        count, *loaded = self.run(self.bin / "python", "-c", IMPORT_ALL, package).split()
        assert int(count) > 1
        return set(loaded)

    def commands(self) -> set[str]:
        """The subcommands that `statestream --help` lists."""
        listing = self.run(self.bin / "statestream", "--help").partition("Commands:")[2]
        return {line.split()[0] for line in listing.splitlines() if line.strip()}

    def installed(self) -> set[str]:
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "list", "--format=freeze"]
        listing = self.run(*command, "--disable-pip-version-check")
        return {canonicalize_name(line.split("==")[0]) for line in listing.splitlines()}


def test_the_client_alone(released: Path, tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv", released)
    env.install("statestream")
    assert not env.installed() & {"onnxruntime", "onnx", "torch", "statestream-server", "click", "rich"}
    env.run(env.bin / "python", "-c", "import statestream; statestream.connect, statestream.aio.connect")
    ran = subprocess.run([env.bin / "statestream", "health"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "statestream: the command needs click and rich: pip install 'statestream[cli]'\n"

    env.install("statestream[cli,pandas]")
    assert env.installed() == listed(released, "client")
    assert not env.import_all("statestream") & {"onnxruntime", "torch"}
    assert "health" in env.commands()
    assert not env.commands() & {"serve", "train"}


def test_the_server_without_torch(released: Path, tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv", released)
    env.install("statestream-server")
    assert not env.installed() & {"onnxruntime", "onnxruntime-gpu", "torch"}
    env.run(env.bin / "python", "-c", "import statestream_server")
    assert {"serve", "inspect"} <= env.commands()

    env.install("statestream-server[cpu,redis]")
    assert env.installed() == listed(released, "server")
    assert "torch" not in env.installed()
    assert "torch" not in env.import_all("statestream_server")


def test_the_server_without_onnxruntime_says_what_to_install(released: Path, tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv", released)
    env.install("statestream-server")
    models = tmp_path / "models"
    models.mkdir()
    ran = subprocess.run(
        [env.bin / "statestream", "serve", str(models)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(tmp_path), "PATH": os.defpath},
    )
    output = ran.stdout + ran.stderr
    assert ran.returncode != 0
    assert "[cpu]" in output
    assert "[gpu]" in output
    assert "Traceback" not in output


def test_the_exporter_alone(released: Path, tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv", released)
    # torch from where this environment has it, so that a build without CUDA stays one.
    torch = setup_venv.torch_arguments(os.environ.get("STATESTREAM_TORCH", "").strip())
    env.run(sys.executable, "-m", "pip", "--python", str(env.bin / "python"), "install", "--quiet", *torch)
    env.install("statestream-export", constraints=Path(setup_venv.effective_constraints()))
    assert env.installed() == listed(released, "export")
    assert "statestream-server" not in env.installed()
    assert "statestream_server" not in env.import_all("statestream_export")
    assert {"train", "recipes", "data"} <= env.commands()


def test_the_server_of_the_unit(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/deploy.md installs it, in another root; what the unit starts there serves, and leaves in order."""
    block = run_by("docs/deploy.md", "tests/packaging/test_wheels.py::test_the_server_of_the_unit")
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    # The page installs as root, from dist/, with the system's Python.
    root = {place: f"{tmp_path}{place}" for place in ("/opt/", "/etc/", "/srv/", "/var/")}
    script = in_root(block.text, root).replace(" dist", f" {released}").replace("python3 ", f"{sys.executable} ", 1)
    ran = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "opt/statestream/share/doc/statestream/sbom-server.cdx.json").exists()
    unit = (tmp_path / "etc/systemd/system/statestream.service").read_text("utf-8")
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    models.write(tmp_path / "srv/statestream/models", "counter")
    monkeypatch.setenv("STATESTREAM_PORT", "0")
    monkeypatch.setenv("STATESTREAM_HTTP_PORT", "0")
    command = shlex.split(in_root(start, root))
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("ready: gRPC on 127.0.0.1:")
            server.terminate()
            assert server.wait(60) == 0
        finally:
            server.kill()
    assert (tmp_path / "var/lib/statestream/sessions.db").exists()


def in_root(text: str, root: dict[str, str]) -> str:
    for place, moved in root.items():
        text = re.sub(rf"(?<![\w.]){place}", moved, text)
    return text
