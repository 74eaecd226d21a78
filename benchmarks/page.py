"""The tables of docs/benchmarks.md from the figures of the runs: `python -m benchmarks.page` writes them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks import figures


def ratios(results: list[dict[str, Any]]) -> str:
    """The table of ratios."""
    lines = [
        "| what | ours | compared with | unit | ratio (least … most) | must be | |",
        "| --- | ---: | ---: | --- | ---: | --- | --- |",
    ]
    for row in results:
        mark = {True: "reached", False: "**missed**", None: ""}[row["reached"]]
        spread = f" ({row['lowest']:.2f} … {row['highest']:.2f})" if row["rounds"] > 1 else ""
        lines.append(
            f"| {row['name']} | {figures.shown(row['ours'])} | {figures.shown(row['other'])} | {row['unit']} |"
            f" {row['ratio']:.2f}{spread} | {row['target']} | {mark} |"
        )
    return "\n".join(lines)


def throughput(found: dict[str, Any]) -> str:
    """Steps a second over the number of sessions."""
    sizes = found["sessions"]
    lines = [f"| steps/s | {' | '.join(f'{size:,}' for size in sizes)} |", f"| --- |{' ---: |' * len(sizes)}"]
    for name, medians in found["steps_per_second"].items():
        lines.append(f"| {name} | {' | '.join(f'{middle:,.0f}' for middle, _, _ in medians)} |")
    return "\n".join(lines)


def voice(found: dict[str, Any]) -> str:
    """Streams a core: ratios, and by the number of calls."""
    sizes = found["calls"]
    lines = [
        ratios(found["rows"]),
        "",
        f"| streams a core, by calls at once | {' | '.join(f'{size:,}' for size in sizes)} |",
    ]
    lines.append(f"| --- |{' ---: |' * len(sizes)}")
    for name, medians in found["streams"].items():
        lines.append(f"| {name} | {' | '.join(f'{middle:,.0f}' for middle, _, _ in medians)} |")
    return "\n".join(lines)


def latency(found: dict[str, Any]) -> str:
    """Round trips at some percentiles."""
    shown = [0.1, 0.5, 0.9, 0.99, 0.999]
    at = [found["quantiles"].index(quantile) for quantile in shown]
    lines = [f"| ms | {' | '.join(f'p{100 * q:g}' for q in shown)} | steps |", f"| --- |{' ---: |' * (len(at) + 1)}"]
    for name, values in found["milliseconds"].items():
        cells = " | ".join(f"{values[place]:.3g}" for place in at)
        lines.append(f"| {name} | {cells} | {found['steps'][name]:,} |")
    return "\n".join(lines)


def profile(found: dict[str, Any]) -> str:
    """Where the time goes, and what a step costs."""
    lines = [
        "| % of the loop thread's time | " + " | ".join(found["cases"]) + " |",
        f"| --- |{' ---: |' * len(found['cases'])}",
    ]
    for phase in found["phases"]:
        cells = " | ".join(f"{100 * case['shares'][phase]:.0f}" for case in found["cases"].values())
        lines.append(f"| {phase} | {cells} |")
    for key, name in (
        ("loop_us", "**µs a step:** server, loop thread"),
        ("others_us", "server, its other threads (gRPC's, store, long batches)"),
        ("client_us", "client"),
        ("wall_us", "by the clock"),
    ):
        lines.append(f"| {name} | " + " | ".join(f"{case[key]:.3g}" for case in found["cases"].values()) + " |")
    return "\n".join(lines)


EDGE_COLUMNS = ("what", "unit", "edge h2", "edge grpcio", "compared with", "server µs each", "ratio", "must", "goal")


def edge_lines(found: list[dict[str, Any]]) -> Iterator[list[str]]:
    """The edges side by side, and what is wanted of ours."""
    for row in found:
        sides = row["sides"]
        others = [name for name in sides if name not in ("h2", "grpcio")]
        costs = (side["server_us"] for side in sides.values())
        yield [
            row["name"],
            row["unit"],
            *(_spread(sides[name]["value"]) if name in sides else "" for name in ("h2", "grpcio")),
            ", ".join(f"{name}: {_spread(sides[name]['value'])}" for name in others),
            " / ".join(figures.shown(cost[0]) for cost in costs if cost),
            _spread(row["judged"]) if row.get("judged") and row["reference"] else "",
            *(_wanted(row, place) for place in (0, 1)),
        ]


def _spread(values: list[float]) -> str:
    middle, least, most = map(figures.shown, values)
    return f"{middle} ({least} … {most})"


def _wanted(row: dict[str, Any], place: int) -> str:
    """What must be, or is aimed at, and whether it is."""
    bound, most, sign = row["must"][place], row["most"], "≥" if row["least"] else "≤"
    text = f"{sign} {bound:g}" + (f", ≤ {most[place]:g} µs" if most else "")
    if not row.get("judged"):
        return text
    value = row["judged"][0]
    reached = value >= bound if row["least"] else value <= bound
    if most:
        reached = reached and row["sides"]["h2"]["server_us"][0] <= most[place]
    return f"{text} {'reached' if reached else '**missed**'}"


def edge(found: list[dict[str, Any]]) -> str:
    """The table of the edges."""
    lines = [f"| {' | '.join(EDGE_COLUMNS)} |", f"| --- | --- |{' ---: |' * (len(EDGE_COLUMNS) - 2)}"]
    return "\n".join([*lines, *(f"| {' | '.join(line)} |" for line in edge_lines(found))])


def soak(found: dict[str, Any]) -> str:
    """What the soak did and found."""
    done = ", ".join(f"{count:,} {what}" for what, count in found["done"].items())
    slope, bound = found["slope_bytes_an_hour"] / 2**20, found["bound_bytes_an_hour"] / 2**20
    return (
        f"{found['seconds'][-1] / 60:.0f} minutes: {done}. {found['compared']:,} outputs compared with ONNX Runtime"
        f" alone, {found['different']} different. RSS after the warm-up: {found['rss_start'] / 2**20:.0f} MiB at its"
        f" begin, {found['rss_end'] / 2**20:.0f} MiB at its end; fitted slope {slope:+.1f} MiB an hour (at most"
        f" {bound:.0f})."
    )


OVERLOAD_LINES = (
    ("peak", "callers in closed loop: answers a second, the peak", ""),
    ("peak_p99", "the same, p99 in ms", ""),
    ("goodput", "calls at twice the peak: answers a second within a second", ""),
    ("ratio", "the same over the peak", "≥ 0.9"),
    ("refused", "refused a second, RESOURCE_EXHAUSTED with RetryInfo", ""),
    ("late", "not answered within a second, a second", ""),
    ("over_p50", "p50 of what was answered, in ms", ""),
    ("over_p99", "p99 of what was answered, in ms", ""),
    ("alone_p50", "another tenant's 4 callers in closed loop, alone: p50 in ms", ""),
    ("alone_p99", "the same, p99 in ms", ""),
    ("beside_p50", "beside the calls at twice the peak: p50 in ms", ""),
    ("beside_p99", "the same, p99 in ms", ""),
    ("times", "p99 beside over p99 alone", "≤ 2"),
)


def overload(found: dict[str, Any]) -> str:
    """What came of more load than there is room for."""
    lines = [f"| {what} | {_spread(found[name])} | {must} |" for name, what, must in OVERLOAD_LINES]
    return "\n".join(["| what | median (least … most) | wanted |", "| --- | ---: | --- |", *lines])


def switches(found: list[dict[str, Any]]) -> str:
    """What each switch costs."""
    lines = ["| what | edge | load | off | on | on / off |", "| --- | --- | --- | ---: | ---: | ---: |"]
    for row in found:
        cells = (row["switch"], row["edge"], row["load"], *(_spread(row[name]) for name in ("off", "on", "ratio")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def lone(found: dict[str, Any]) -> str:
    """The stages of a lone step."""
    whole, echo = found["whole"], found["echo"]
    lines = ["| stage of a lone step | µs, median (quartiles) | of the echo's round trip |", "| --- | ---: | ---: |"]
    for name, values in found["stages"].items():
        lines.append(f"| {name} | {_spread(values)} | {values[0] / echo:.2f} |")
    lines.append(f"| whole, median of {found['steps']:,} steps | {figures.shown(whole)} | {whole / echo:.2f} |")
    lines.append(f"| the bare echo, client and server | {figures.shown(echo)} | 1 |")
    return "\n".join(lines)


SECTIONS: Mapping[str, Callable[[Any], str]] = {
    "ratios": ratios,
    "throughput": throughput,
    "latency": latency,
    "profile": profile,
    "soak": soak,
    "int8": ratios,
    "voice": voice,
    "forecasts": ratios,
    "edge": edge,
    "lone": lone,
    "overload": overload,
    "switches": switches,
}


def filled(page: str, known: dict[str, Any]) -> str:
    """The page with its tables as the figures have them; each says what measured it."""
    for name, section in SECTIONS.items():
        if name not in known:
            continue
        head, rest = page.split(f"<!-- {name} -->\n", 1)
        _, tail = rest.split("<!-- end -->", 1)
        text = f"{section(known[name]['figures'])}\n\nMeasured on {known[name]['machine']}."
        page = f"{head}<!-- {name} -->\n{text}\n<!-- end -->{tail}"
    return page


def write() -> None:
    """Writes the page and its pictures anew."""
    from benchmarks import pictures

    known = figures.load()
    figures.PAGE.write_text(filled(figures.PAGE.read_text(), known))
    pictures.draw(known, figures.IMAGES)


if __name__ == "__main__":
    write()
