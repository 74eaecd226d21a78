"""The tables of docs/reliability.md from the figures of the runs: `python -m tests.chaos.tables` writes them anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURES = _DOCS / "reliability.md", _DOCS / "images" / "chaos.json"

RUNS = {
    "chaos-redis-kills": (
        "3 replicas, Redis: a random one is killed (SIGKILL) and restarted",
        "replicas_over_redis",
    ),
    "chaos-sqlite-kills": ("1 replica, sqlite: it is killed and started again", "one_replica_over_sqlite"),
    "chaos-drains": ("2 replicas, Redis: one leaves (SIGTERM) and comes back", "drains"),
    "chaos-sleep": ("3 replicas, Redis: one sleeps (SIGSTOP) until its sessions have moved", "sleep_through"),
    "chaos-redis-outage": ("Redis is gone for 10 s; then a replica is killed", "ten_seconds"),
    "chaos-redis-flush": ("Redis forgets everything (FLUSHALL); then both replicas are killed", "redis_forgets"),
    "chaos-cluster-all": ("3 replicas, Redis Cluster of 3: replicas and nodes are killed", "cluster_nodes"),
    "chaos-cluster-partial": ("The same without `cluster-require-full-coverage`", "cluster_nodes"),
    "chaos-failover-interval": ("A primary and a server are killed, its replica takes over (`?wait=1`)", "waited_for"),
    "chaos-failover-sync": ("The same in mode `sync`", "waited_for"),
    "chaos-network": ("Connections cut, stalled, delayed; replies lost after the step was applied", "lost_replies"),
    "chaos-half-open": ("Connections fall silent for good and stay open", "half_open"),
    "chaos-disk-full": ("The disk of sqlite is full for a while; then the server is killed", "full_disk_under"),
    "chaos-callers": ("A caller is killed, at times with its server, and goes on", "had_not_acknowledged"),
    "chaos-random-redis": ("All of these at random, at times two at once: 3 replicas, Redis", "replicas_redis_and"),
    "chaos-random-sqlite": ("The same with 1 replica and sqlite", "replica_sqlite_and"),
}
"""What each run is, and the `-k` that runs it alone."""


def runs(figures: dict[str, Any]) -> str:
    """The table of runs."""
    lines = [
        '| fault | sessions | faults | outputs checked | lost | repeated | pause p50 | p99 | `ARGS="-k …"` |',
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, (what, choice) in RUNS.items():
        if name not in figures:
            continue
        one = figures[name]
        pauses = [f"{one[key]:.2f} s" if key in one else "" for key in ("pause_p50_seconds", "pause_p99_seconds")]
        count = one.get("faults", one.get("crashes"))
        lines.append(
            f"| {what} | {one.get('sessions', 1):,} | {count} | {one['outputs_checked']:,} | {one['lost']} |"
            f" {one['repeated']} | {pauses[0]} | {pauses[1]} | `{choice}` |"
        )
    return "\n".join(lines)


def costs(figures: dict[str, Any]) -> str:
    """The table of costs."""
    lines = ["| what | measured | wanted | command |", "| --- | --- | --- | --- |"]
    if "chaos-cpu" in figures:
        one = figures["chaos-cpu"]
        cost, dirty = one["cpu_seconds_per_million_steps"], one["dirty_sessions_a_second"]
        low, high = one["ratio_range"]
        lines.append(
            f"| CPU-seconds of the server per million steps, {dirty:,} dirty sessions a second |"
            f" {cost['interval']:.2f} saved every second, {cost['none']:.2f} not saved:"
            f" {100 * (one['ratio_median'] - 1):+.0f} % (median of {one['rounds']} pairs,"
            f" {100 * (low - 1):+.0f} to {100 * (high - 1):+.0f} %) | at most +10 % | `cpu` |"
        )
    for store in ("sqlite", "redis"):
        if (one := figures.get(f"chaos-resume-{store}")) is not None:
            lines.append(
                f"| {one['sessions']:,} sessions step again after SIGKILL, {store}: from the new process's ready line |"
                f" {one['resume_seconds']:.1f} s (starting the process: {one['server_start_seconds']:.1f} s) |"
                f" at most 5 s | `resume --store {store}` |"
            )
    if "chaos-bytes" in figures:
        one = figures["chaos-bytes"]
        lines.append(
            f"| bytes of a session in the store; its state alone has {one['state_bytes']} |"
            f" sqlite {one['sqlite']}, Redis {one['redis']} | | `bytes` |"
        )
    return "\n".join(lines)


def filled(page: str, figures: dict[str, Any]) -> str:
    """The page with its tables as the figures have them."""
    for name, table in (("runs", runs(figures)), ("costs", costs(figures))):
        head, rest = page.split(f"<!-- {name} -->\n", 1)
        _, tail = rest.split("<!-- end -->", 1)
        page = f"{head}<!-- {name} -->\n{table}\n<!-- end -->{tail}"
    return page


def main() -> None:
    """Writes the page anew."""
    PAGE.write_text(filled(PAGE.read_text(), json.loads(FIGURES.read_text())))


if __name__ == "__main__":
    main()
