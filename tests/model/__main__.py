"""`python -m tests.model` searches with all rules; with `--explain` or `--faults` it takes each rule away."""

from __future__ import annotations

import argparse
import ast
import inspect
import sys

from tests.model import words
from tests.model.explorer import explore
from tests.model.rules import ALL, NAMES, Rules, Setting
from tests.model.settings import CURES, FOUND_AS, HOLDS, HOLDS_LONGER, HOLDS_SLOWLY, SHOWN_BY


def main() -> int:
    """Prints what was found; 1 where it is not what the protocol promises."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--deep", action="store_true", help="search the large settings too; takes minutes")
    parser.add_argument(
        "--faults", action="store_true", help="find the faults that the code had, each without its cure"
    )
    parser.add_argument("--explain", action="store_true", help="take each rule away and tell the shortest schedule")
    arguments = parser.parse_args()
    if arguments.explain:
        return max([_explain(name, _text(name), name, SHOWN_BY[name]) for name in NAMES])
    if arguments.faults:
        return max([_explain(fault, f"Cured by {name}.\n", name, setting) for fault, (name, setting) in CURES.items()])
    print("| setting | states | longest schedule | seconds | |\n| --- | --- | --- | --- | --- |")
    return max([_search(setting) for setting in (*HOLDS, *HOLDS_SLOWLY, *(HOLDS_LONGER if arguments.deep else ()))])


def _search(setting: Setting) -> int:
    found = explore(setting)
    end = found.violation or ("all states" if found.complete else f"all states up to {found.depth} events")
    print(f"| {words.faults(setting)} | {found.states:,} | {found.depth} | {found.seconds:.1f} | {end} |", flush=True)
    if found.violation:
        print("\n".join(words.sentences(setting, ALL, found)))
    return int(bool(found.violation))


def _explain(title: str, text: str, name: str, setting: Setting) -> int:
    rules = ALL.without(name)
    found = explore(setting, rules, wanted=FOUND_AS.get(title, ""))
    print(f"### {title}\n\n{text}\nWithout it ({words.faults(setting)}; {found.states:,} states):\n")
    lines = words.sentences(setting, rules, found) if found.violation else ["→ nothing was found"]
    for number, line in enumerate(lines[:-1], 1):
        print(f"{number}. {line}")
    print(f"\n{lines[-1]}.\n", flush=True)
    return int(not found.violation)


def _text(name: str) -> str:
    """What the rule says: the words below its field."""
    body = ast.parse(inspect.getsource(sys.modules[Rules.__module__])).body
    rules = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == Rules.__name__)
    fields = [ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else "" for node in rules.body]
    below = rules.body[fields.index(name) + 1]
    return f"{ast.literal_eval(below.value)}\n" if isinstance(below, ast.Expr) else ""


if __name__ == "__main__":
    sys.exit(main())
