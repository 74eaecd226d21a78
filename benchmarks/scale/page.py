"""The tables of docs/scale.md from the figures of the runs: `python -m benchmarks.scale page` writes them anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from benchmarks import figures
from benchmarks.scale.ask import COMPARED, compared, costs_of, setting_of

PAGE, FILE = figures.PAGE.with_name("scale.md"), figures.IMAGES / "scale.json"

_COSTS: Final = {
    "frame": ("a frame, in a replica", 1e6, "µs"),
    "step": ("a step in it", 1e6, "µs"),
    "record": ("a record that is saved", 1e6, "µs"),
    "call": ("a script call in which records are saved", 1e6, "µs"),
    "shard_record": ("a record, in Redis", 1e6, "µs"),
    "shard_call": ("a script call, in Redis", 1e6, "µs"),
    "claim": ("a session that is taken over after a kill", 1e6, "µs"),
    "shard_claim": ("the same, in Redis", 1e6, "µs"),
    "client_frame": ("a frame, in the caller", 1e6, "µs"),
    "client_step": ("a step in it", 1e6, "µs"),
    "client_claim": ("a session that is opened elsewhere, in the caller", 1e6, "µs"),
    "reconnect": ("from a kill until a lone session is answered elsewhere", 1e3, "ms"),
    "trip": ("a frame's way there and back, beside these", 1e3, "ms"),
    "step_wire": ("a step between caller and replica, both ways", 1, "bytes"),
    "record_wire": ("a record on its way to Redis", 1, "bytes"),
    "record_memory": ("a session in Redis' memory", 1, "bytes"),
}
_COMPARED: Final = {
    "replica_seconds": ("processors that the replicas use together", 1, ""),
    "redis_seconds": ("processors that Redis uses", 1, ""),
    "steady_p50": ("answers late, p50", 1e3, " ms"),
    "steady_p99": ("answers late, p99", 1e3, " ms"),
    "pause_p50": ("pause after the kill, p50 of streams", 1e3, " ms"),
    "pause_max": ("pause after the kill, the longest", 1e3, " ms"),
}


def costs(known: Mapping[str, Any]) -> str:
    """What was measured."""
    lines = ["| processor time, time or bytes of | median | least … most | |", "| --- | ---: | ---: | --- |"]
    found = known["costs"]["figures"]
    for name, (what, factor, unit) in _COSTS.items():
        middle, low, high = (factor * found[name][key] for key in ("median", "least", "most"))
        span = f"{low:.3g} … {high:.3g}" if found[name]["rounds"] > 1 else ""
        lines.append(f"| {what} | {figures.shown(middle) if middle >= 1000 else f'{middle:.3g}'} | {span} | {unit} |")
    return "\n".join(lines)


def runs(known: Mapping[str, Any]) -> str:
    """What was measured and what was simulated of it."""
    lines = [
        "| replicas | figure | measured (least … most) | simulated | error |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for run in known["runs"]["figures"]:
        found = compared(costs_of(known["costs"]["figures"]), setting_of(run["setting"]))
        for name in COMPARED:
            what, factor, unit = _COMPARED[name]
            middle, low, high = (factor * run["measured"][name][key] for key in ("median", "least", "most"))
            lines.append(
                f"| {run['setting']['replicas']} | {what} | {middle:.3g}{unit} ({low:.3g} … {high:.3g}) |"
                f" {factor * found[name]:.3g}{unit} | {100 * (factor * found[name] / middle - 1):+.0f} % |"
            )
    return "\n".join(lines)


def asked(known: Mapping[str, Any]) -> str:
    """How large each fleet is."""
    lines = [
        "| sessions | saved every | replicas | Redis shards | callers ↔ replicas | replicas → Redis | Redis' memory |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in known["asked"]["figures"]:
        lines.append(
            f"| {one['sessions']:,.0f} | {one['save_interval']:g} s | {one['replicas']:,.0f} | {one['shards']:,.0f} |"
            f" {one['callers_gbit']:.3g} Gbit/s | {one['store_gbit']:.3g} Gbit/s | {one['store_gbyte']:.3g} GB |"
        )
    return "\n".join(lines)


def lost(known: Mapping[str, Any]) -> str:
    """What callers notice of a loss."""
    lines = [
        "| sessions | saved every | lost | pause p50 | p99 | longest | everybody else, p99 | replicas busy after it |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in known["asked"]["figures"]:
        for what, found in one["lost"].items():
            name = {"one": "1 replica", "five": f"{found['killed']} replicas"}.get(
                what, f"a zone: {found['killed']:,} replicas, {found['shards_down']:,} shards"
            )
            lines.append(
                f"| {one['sessions']:,.0f} | {one['save_interval']:g} s | {name} | {found['pause_p50']:.2g} s |"
                f" {found['pause_p99']:.2g} s | {found['pause_max']:.2g} s | {found['elsewhere_p99']:.2g} s |"
                f" {100 * found['replica_busy']:.0f} % |"
            )
    return "\n".join(lines)


SECTIONS: Final[Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]]] = {
    "costs": ("costs", costs),
    "runs": ("runs", runs),
    "asked": ("asked", asked),
    "lost": ("asked", lost),
}
"""The tables of the page, each with the section whose machine it names."""


def filled(page: str, known: Mapping[str, Any]) -> str:
    """The page with its tables as the figures have them."""
    for name, (section, table) in SECTIONS.items():
        head, rest = page.split(f"<!-- {name} -->\n", 1)
        _, tail = rest.split("<!-- end -->", 1)
        how = "" if section == "asked" else f"\n\nMeasured on {known[section]['machine']}."
        page = f"{head}<!-- {name} -->\n{table(known)}{how}\n<!-- end -->{tail}"
    return page


def write() -> None:
    """Writes the page anew."""
    PAGE.write_text(filled(PAGE.read_text("utf-8"), figures.load(FILE)), "utf-8")
