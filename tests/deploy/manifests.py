"""Kustomizations, built by hand: what of kustomize the files of deploy/kubernetes use, and nothing else.

CI's machines have no kustomize. Where there is a kubectl, a test compares what that builds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
KUBERNETES: Final = ROOT / "deploy" / "kubernetes"
USED: Final = {"apiVersion", "kind", "resources", "patches", "namespace", "images"}
KEYS: Final = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath", "ports": "name"}
"""By which of its fields an item of a list is the same as one of a patch's; other lists are replaced."""

Object = dict[str, Any]


def documents(path: Path) -> list[Object]:
    """All objects of a file."""
    return [one for one in yaml.safe_load_all(path.read_text("utf-8")) if one is not None]


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization, in no order."""
    (told,) = documents(folder / "kustomization.yaml")
    assert set(told) <= USED, f"{folder}: {set(told) - USED} is not known here"
    found: list[Object] = []
    for name in told.get("resources", ()):
        path = folder / name
        found += build(path) if path.is_dir() else documents(path)
    for entry in told.get("patches", ()):
        assert set(entry) == {"path"}, f"{folder}: a patch is the path of a file"
        for patch in documents(folder / entry["path"]):
            (target,) = [one for one in found if identity(one) == identity(patch)]
            merge(target, patch)
    for one in found:
        if told.get("namespace") and one["kind"] != "Namespace":
            one["metadata"]["namespace"] = told["namespace"]
        for image in told.get("images", ()):
            for container in containers(one):
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = f"{image['name']}:{image['newTag']}"
    return found


def identity(one: Object) -> tuple[str, str, str]:
    """What an object is called: group and version, kind, name."""
    return (one["apiVersion"], one["kind"], one["metadata"]["name"])


def merge(target: Object, patch: Object) -> None:
    """A strategic merge: null deletes, items of the lists in `KEYS` meet by a field."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            merge(target.setdefault(key, {}), value)
        elif key in KEYS and isinstance(value, list):
            items = target.setdefault(key, [])
            for item in value:
                same = [old for old in items if old[KEYS[key]] == item[KEYS[key]]]
                if not same:
                    items.append(same_item := {KEYS[key]: item[KEYS[key]]})
                    same = [same_item]
                merge(same[0], item)
        else:
            target[key] = value


def sorted_lists(value: Any) -> Any:
    """A value with those lists in one order: kustomize puts the items of a patch first."""
    if isinstance(value, dict):
        return {
            key: sorted(map(sorted_lists, items), key=lambda item: str(item.get(KEYS[key])))
            if key in KEYS and isinstance(items, list) and all(isinstance(item, dict) for item in items)
            else sorted_lists(items)
            for key, items in value.items()
        }
    return [sorted_lists(item) for item in value] if isinstance(value, list) else value


def pod(one: Object) -> Object:
    """The pod's specification in a workload; empty where an object has none."""
    spec: Object = one.get("spec", {})
    found: Object = spec.get("template", {}).get("spec", {})
    return spec if one["kind"] == "ServingRuntime" else found


def containers(one: Object) -> list[Object]:
    """The containers of a workload."""
    found: list[Object] = pod(one).get("containers", [])
    return found


def walk(value: Any, wanted: Callable[[str], bool], path: str = "") -> Iterator[tuple[str, Any]]:
    """All values in an object whose path (`.spec.template…`) is wanted."""
    if wanted(path):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from walk(item, wanted, f"{path}.{key}")
