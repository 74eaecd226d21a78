"""deploy/kubernetes: built, checked against Kubernetes' schemas, and what its pods are told works in a process here.

What no machine of ours can do is not done: nothing is applied to a cluster, and kinds of other projects (gateways,
meshes, KServe) have no schema here. Each file says what of it holds for it.
"""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from statestream_server.cli import serve
from tests.deploy.manifests import KUBERNETES, ROOT, Object, build, containers, documents, pod, sorted_lists, walk
from tests.deploy.running import check_server, server_of
from tests.server.stores.redis_server import redis_server

BUILT = sorted(str(path.parent.relative_to(KUBERNETES)) for path in KUBERNETES.rglob("kustomization.yaml"))
OVERLAYS = [name for name in BUILT if name.startswith("overlays/")]
FILES = sorted(path.relative_to(KUBERNETES) for path in KUBERNETES.rglob("*.yaml"))
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
"""Releases of Kubernetes: from the first one whose preStop can sleep."""
OTHERS = {"Gateway", "GRPCRoute", "BackendTrafficPolicy", "DestinationRule", "ServingRuntime", "InferenceService"}
"""Kinds of other projects, without a schema here."""
MARKS = {
    "core": "# Checked against the schemas of Kubernetes by tests/deploy; not run: no machine of ours has a cluster.",
    "other": "# Neither checked against a schema nor run: the kinds here are not those of Kubernetes itself.",
    "kustomization": "# Built by tests/deploy; not run: no machine of ours has a cluster.",
    "values": "# Not run: no machine of ours has a cluster. A test checks that the metric is one that the server has.",
}
BY_USERS = {"statestream-store"}
"""Secrets that docs/deploy.md has users make."""


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_says_what_was_not_tried(file: Path) -> None:
    first = (KUBERNETES / file).read_text("utf-8").splitlines()[0]
    kinds = {one.get("kind") for one in documents(KUBERNETES / file)}
    if file.name == "kustomization.yaml":
        expected = "kustomization"
    else:
        expected = "other" if kinds <= OTHERS else "values" if kinds == {None} else "core"
    assert first == MARKS[expected]


# What the others have beside these is of other projects.
@pytest.mark.parametrize("name", ["overlays/try", "overlays/cluster"])
@pytest.mark.parametrize("version", VERSIONS)
def test_kinds_of_kubernetes_fit_their_schemas(name: str, version: str) -> None:
    checked = [one for one in build(KUBERNETES / name) if one["kind"] not in OTHERS]
    assert len(checked) > 10
    for one in checked:
        assert kubernetes_validate.validate(one, version, strict=True) == version


def test_a_field_that_is_not_in_a_schema_is_refused() -> None:
    (one,) = [one for one in build(KUBERNETES / "base") if one["kind"] == "Deployment"]
    containers(one)[0]["lifecycle"]["preStop"]["sleeps"] = {"seconds": 5}
    with pytest.raises(kubernetes_validate.ValidationError, match="sleeps"):
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", BUILT)
def test_kubectl_builds_the_same(name: str) -> None:
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("kubectl is not on PATH: built by hand alone")
    ran = subprocess.run([binary, "kustomize", str(KUBERNETES / name)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    theirs = [one for one in yaml.safe_load_all(ran.stdout) if one is not None]
    assert by_name(theirs) == by_name(build(KUBERNETES / name))


def by_name(objects: list[Object]) -> list[Any]:
    return sorted(map(sorted_lists, objects), key=lambda one: (one["kind"], one["metadata"]["name"]))


@pytest.mark.parametrize("name", OVERLAYS)
def test_everything_that_is_named_is_there(name: str) -> None:
    """Claims, maps, secrets, accounts, targets by name; ports by name; pods by their labels."""
    objects = build(KUBERNETES / name)
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in objects if pod(one)]
    ports = {port["name"] for one in objects for container in containers(one) for port in container["ports"]}

    def named(end: str) -> set[str]:
        return {value for one in objects for _, value in walk(one, lambda path: path.endswith(end))}

    assert {("PersistentVolumeClaim", one) for one in named("persistentVolumeClaim.claimName")} <= there
    assert {("ConfigMap", one) for one in named("configMap.name")} <= there
    assert {("Service", one) for one in named(".spec.serviceName")} <= there
    assert {("ServiceAccount", one) for one in named("serviceAccountName")} <= there
    assert named("secretName") | named("secretKeyRef.name") <= BY_USERS
    assert {("Deployment", one) for one in named("scaleTargetRef.name")} <= there
    assert {port for port in named("targetPort") | named("ports.0.port") if isinstance(port, str)} <= ports
    for one in objects:
        selectors = [value for _, value in walk(one, lambda path: path.endswith((".selector", ".podSelector")))]
        for selector in selectors:
            wanted = selector.get("matchLabels", selector)
            by_hand = set(wanted) == {"statestream/client"}
            assert by_hand or any(wanted.items() <= found.items() for found in labels), (one["metadata"], wanted)
    namespaces = {one["metadata"].get("namespace", "statestream") for one in objects}
    assert namespaces == {"statestream"}


@pytest.mark.parametrize("name", [*OVERLAYS, "kserve"])
def test_containers_have_no_rights(name: str) -> None:
    """What Pod Security calls restricted, and a root file system that is only read."""
    workloads = [one for one in build(KUBERNETES / name) if containers(one)]
    assert workloads
    for one in workloads:
        for container in containers(one):
            own = container["securityContext"]
            whole = {**pod(one).get("securityContext", {}), **own}
            assert whole["runAsNonRoot"] is True
            assert whole["runAsUser"] > 0
            assert own["readOnlyRootFilesystem"] is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["livenessProbe"]
            assert container["readinessProbe"]
        assert name == "kserve" or pod(one)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert name == "kserve" or pod(one)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", [*OVERLAYS, "kserve"])
def test_settings_are_those_of_the_server(name: str) -> None:
    container = server_of(name)
    version = tomllib.loads((ROOT / "server" / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert container["image"] == f"statestream-server:{version}"
    assert container["args"][0] == "serve"
    known = {str(parameter.envvar) for parameter in serve.params}
    told = {entry["name"] for entry in container["env"]}
    assert {one for one in told if one.startswith("STATESTREAM_")} <= known
    # A Service `statestream` gives pods STATESTREAM_PORT=tcp://…, unless they say otherwise.
    assert {"STATESTREAM_PORT", "STATESTREAM_HTTP_PORT"} <= told


def test_the_pod_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The overlay's Valkey settings in a redis-server, the server's environment in a server."""
    objects = build(KUBERNETES / "overlays" / "try")
    (config,) = [one for one in objects if one["kind"] == "ConfigMap"]
    file = tmp_path / "valkey.conf"
    file.write_text(config["data"]["valkey.conf"])
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(folder, "--include", str(file)) as store:
        assert store.client.config_get("append*")["appendfsync"] == "always"
        assert store.client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        check_server(tmp_path, server_of("overlays/try"), store.url, monkeypatch)


def test_routes_hash_on_the_header_that_clients_send() -> None:
    gateway = {one["kind"]: one for one in build(KUBERNETES / "routes" / "envoy-gateway")}
    hashed = gateway["BackendTrafficPolicy"]["spec"]["loadBalancer"]["consistentHash"]["header"]["name"]
    (rule,) = build(KUBERNETES / "routes" / "istio")
    assert rule["spec"]["trafficPolicy"]["loadBalancer"]["consistentHash"]["httpHeaderName"] == hashed
    sent = (ROOT / "deploy" / "haproxy.cfg").read_text("utf-8")
    assert f"hdr({hashed})" in sent, "the header that tests/server/durability/test_routing.py runs against a proxy"
