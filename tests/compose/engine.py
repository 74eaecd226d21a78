"""A container engine and compose, as tests find them on whatever machine they run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from tests import leftovers
from tests.services import absent

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {
    "python": "python:3.11.13-slim-bookworm",
    "redis": "redis:7.2.7-bookworm",
    "haproxy": "haproxy:2.8.14-bookworm",
    "prometheus": "prom/prometheus:v2.53.4",
}
"""The public images that the files name; where none can be pulled, STATESTREAM_DOCKER_UP has stand-ins for them."""


def run(*command: str | Path, env: Mapping[str, str] | None = None, timeout: float = 120) -> str:
    """Runs a command and returns its output; one that fails fails the test with what it printed."""
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, f"{command} exited {ran.returncode}:\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout.strip()


def succeeds(*command: str) -> bool:
    """Whether the command is there and exits with 0."""
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return False


def require_engine() -> None:
    """Finds a running engine, or has STATESTREAM_DOCKER_UP bring one up, or skips the test."""
    script = os.environ.get("STATESTREAM_DOCKER_UP")
    if script:
        stand_ins = [f"{kind}={image}" for kind, image in IMAGES.items()]
        run(script, *stand_ins, env=leftovers.to_outlast(), timeout=400)
    elif not succeeds("docker", "info"):
        absent("there is no container engine that answers `docker info`")


def compose_command() -> list[str]:
    """`docker compose`, or the older `docker-compose`."""
    if succeeds("docker", "compose", "version"):
        return ["docker", "compose"]
    found = shutil.which("docker-compose") or absent("there is neither `docker compose` nor `docker-compose`")
    return [found]


class Deployment:
    """A compose file under a project name of its own, so that it meddles with no other."""

    def __init__(self, project: str, settings: Mapping[str, str], file: str = "docker-compose.yml") -> None:
        self.project = project
        self._command = [*compose_command(), "--project-name", project, "--file", str(ROOT / file)]
        self._env = {**os.environ, **settings}

    def compose(self, *arguments: str, timeout: float = 120) -> str:
        """Runs compose with these arguments."""
        return run(*self._command, *arguments, env=self._env, timeout=timeout)

    def containers(self, service: str = "server") -> list[str]:
        """The ids of a service's containers, those that ended, too."""
        labels = [f"label=com.docker.compose.{name}" for name in (f"project={self.project}", f"service={service}")]
        filters = [part for label in labels for part in ("--filter", label)]
        return run("docker", "ps", "--all", "--quiet", "--no-trunc", *filters).split()

    def container(self, service: str = "server") -> str:
        """The id of a service's only container."""
        (found,) = self.containers(service)
        return found

    def wait_healthy(self, service: str = "server", seconds: float = 120) -> None:
        """Returns once the own health checks of a service's containers pass; fails where one dies first."""
        for container in self.containers(service):
            self._wait_healthy(container, seconds)

    def _wait_healthy(self, container: str, seconds: float) -> None:
        since = run("docker", "inspect", "--format", "{{.State.StartedAt}}", container)
        # The engine repeats what happened since the start, then tells what happens, until the deadline.
        command = ["docker", "events", "--since", since, "--until", str(int(time.time() + seconds))]
        filters = ["--filter", f"container={container}", "--filter", "event=health_status", "--filter", "event=die"]
        seen = []
        with subprocess.Popen(
            [*command, *filters, "--format", "{{.Status}}"], stdout=subprocess.PIPE, text=True
        ) as events:
            assert events.stdout is not None
            for line in events.stdout:
                seen.append(line.strip())
                if seen[-1] in {"health_status: healthy", "die"}:
                    break
            events.terminate()
        assert seen[-1:] == ["health_status: healthy"], f"not healthy in {seconds} s: {seen}\n{self.logs()}"

    def logs(self) -> str:
        """The end of what the containers printed."""
        return self.compose("logs", "--no-color", "--tail", "50")

    def left(self) -> list[str]:
        """What there still is of it: containers, volumes (those without a name, too), networks."""
        mine = f"label=com.docker.compose.project={self.project}"
        return [
            f"{kind} {name}"
            for kind, command in (
                ("container", ["ps", "--all"]),
                ("volume", ["volume", "ls"]),
                ("network", ["network", "ls"]),
            )
            for name in run("docker", *command, "--quiet", "--filter", mine).split()
        ]


def until(wanted: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Returns once something holds that only asking tells; what is not reached yet may refuse connections."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if wanted():
                return
        assert time.monotonic() < deadline, f"waited {seconds} s until {what}"
        time.sleep(0.5)


def volumes() -> set[str]:
    """All volumes of the engine."""
    return set(run("docker", "volume", "ls", "--quiet").split())


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def readable(folder: Path) -> None:
    """Lets the user of the containers read a folder that pytest made."""
    for one in (folder, *folder.parents[:3], *folder.rglob("*")):
        if one.stat().st_uid == os.getuid():
            one.chmod(one.stat().st_mode | 0o055)
