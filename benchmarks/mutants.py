"""How many faults the tests notice: small changes to lines of the library, one by one.

    python -m pip install pytest-cov
    python -m pytest -n auto --cov=invertjax --cov-context=test --cov-report=
    python -m benchmarks.mutants [--count 100] [--seed 15] [--out mutants.jsonl]

Draws lines of invertjax/ that hold something to change, and one change of each: a
comparison, a sign, an operator, a number, a condition. A mutant is killed if one of
the nearest tests that run the line fails, or if they take four minutes. Files are
changed in place and restored: use a checkout of its own. A second call goes on with
what --out lacks.
"""
# pyright: reportMissingImports=false

import argparse
import ast
import collections
import json
import pathlib
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.worker import ROOT

SWAPS: dict[type, tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Pow: ("**", "*"), ast.Mod: ("%", "*"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.MatMult: ("@", "*"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
NAMES = {
    "minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min",
    "any": "all", "all": "any", "sum": "mean", "mean": "sum", "argmin": "argmax",
    "argmax": "argmin", "floor": "ceil", "ceil": "floor", "zeros": "ones",
    "ones": "zeros", "cos": "sin", "sin": "cos", "exp": "expm1", "sqrt": "square",
}  # fmt: skip
LIMIT = 240  # seconds
MOST_TESTS = 25  # of a mutant; what survives them may yet be killed by another


class Mutant(NamedTuple):
    """Characters `start:stop` of a file become `new`; line: from 1."""

    path: str
    line: int
    start: int
    stop: int
    new: str


def mutants(path: pathlib.Path) -> Iterator[Mutant]:
    """Yields every change of a file that this knows of."""
    text = path.read_text("utf-8")
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def place(line: int, column: int) -> int:
        # Columns of `ast` are bytes.
        row = text[lines[line - 1] : lines[line]]
        return lines[line - 1] + len(row.encode()[:column].decode())

    def span(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return place(node.lineno, node.col_offset), place(
            node.end_lineno, node.end_col_offset
        )

    name = str(path.relative_to(ROOT))
    tree = ast.parse(text)
    skipped = set(_annotations(tree))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        for start, stop, new in _changes(node, text, span):
            yield Mutant(name, text.count("\n", 0, start) + 1, start, stop, new)


def _annotations(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields all nodes of types, which nothing computes."""
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if isinstance(found := getattr(node, field, None), ast.AST):
                yield from ast.walk(found)


def _changes(node, text, span) -> Iterator[tuple[int, int, str]]:
    if isinstance(node, ast.BinOp):
        yield from _operator(node.op, node.left, node.right, text, span)
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
            yield from _operator(op, left, right, text, span)
    elif isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from _operator(node.op, left, right, text, span)
    elif isinstance(node, ast.UnaryOp):
        start, _ = span(node)
        yield start, span(node.operand)[0], ""
    elif isinstance(node, ast.IfExp | ast.If | ast.While):
        start, stop = span(node.test)
        yield start, stop, f"(not ({text[start:stop]}))"
    elif isinstance(node, ast.Constant):
        yield from _number(node, span)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        _, stop = span(node)
        yield stop - len(node.attr), stop, NAMES[node.attr]


def _operator(op, left, right, text, span) -> Iterator[tuple[int, int, str]]:
    old, new = SWAPS.get(type(op), ("", ""))
    begin, end = span(left)[1], span(right)[0]
    at = text.find(old, begin, end) if old else -1
    if at >= 0:
        yield at, at + len(old), new


def _number(node, span) -> Iterator[tuple[int, int, str]]:
    value, (start, stop) = node.value, span(node)
    if isinstance(value, bool):
        yield start, stop, str(not value)
    elif isinstance(value, int):
        yield start, stop, str(value + 1)
    elif isinstance(value, float):
        yield start, stop, repr(2 * value if value else 1.0)


def draw(count: int, seed: int) -> list[Mutant]:
    """Draws lines, and one change of each."""
    lines = collections.defaultdict(list)
    for path in sorted((ROOT / "invertjax").rglob("*.py")):
        for found in mutants(path):
            lines[found.path, found.line].append(found)
    chance = random.Random(seed)
    return [chance.choice(lines[key]) for key in chance.sample(sorted(lines), count)]


def tests_of(mutant: Mutant, coverage) -> list[str]:
    """Returns the tests of the file, and those that run the line; where there are none,
    those that run anything of the file, or whose text has the line's first word.

    What tests do when they are imported is in no context: hence the first.
    """
    contexts = coverage.contexts_by_lineno(str(ROOT / mutant.path))
    mirror = ROOT / "tests" / pathlib.Path(mutant.path)
    alone = mirror.with_name(f"test_{mirror.name}")
    found = {text.partition("|")[0] for text in contexts.get(mutant.line, ())} - {""}
    if alone.exists():
        own = str(alone.relative_to(ROOT))
        return [own, *sorted(test for test in found if not test.startswith(own))]
    every = {text.partition("|")[0] for row in contexts.values() for text in row}
    return sorted(found or every - {""}) or _naming(mutant)


def _naming(mutant: Mutant) -> list[str]:
    line = (ROOT / mutant.path).read_text("utf-8").splitlines()[mutant.line - 1]
    word = re.match(r"\W*(\w+)", line)
    return [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if word and re.search(rf"\b{word[1]}\b", path.read_text("utf-8"))
    ]


def killed(mutant: Mutant, tests: list[str]) -> str:
    """Returns the test that fails, or ""."""
    if not tests:
        return ""
    path = ROOT / mutant.path
    before = path.read_text("utf-8")
    mutated = before[: mutant.start] + mutant.new + before[mutant.stop :]
    path.write_text(mutated, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["--no-header", "--durations=0", *_nearest(mutant, tests)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"more than {LIMIT} s"
    finally:
        path.write_text(before, "utf-8")
    if done.returncode in (0, 5):
        return ""
    failed = [
        line
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR", "INTERNALERROR"))
    ]
    return (failed or [done.stdout[-200:] + done.stderr[-200:]])[0]


def _nearest(mutant: Mutant, tests: list[str]) -> list[str]:
    """Returns the tests that are nearest: of the line's own file and package first."""
    package = f"tests/{pathlib.Path(mutant.path).parent}/"
    name = f"test_{pathlib.Path(mutant.path).name}"
    found = sorted(
        tests, key=lambda test: (name not in test, package not in test, test)
    )
    return found[:MOST_TESTS]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "mutants.jsonl")
    given = parser.parse_args()
    import coverage

    covered = coverage.CoverageData(str(ROOT / ".coverage"))
    covered.read()
    done = set()
    if given.out.exists():
        rows = map(json.loads, given.out.read_text("utf-8").splitlines())
        done = {(row["path"], row["line"], row["new"]) for row in rows}
    for mutant in draw(given.count, given.seed):
        if (mutant.path, mutant.line, mutant.new) in done:
            continue
        text = (ROOT / mutant.path).read_text("utf-8")
        tests = tests_of(mutant, covered)
        row = mutant._asdict() | {
            "old": text[mutant.start : mutant.stop],
            "source": text.splitlines()[mutant.line - 1].strip(),
            "tests": len(tests),
            "killed": killed(mutant, tests),
        }
        with open(given.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print("killed" if row["killed"] else "SURVIVED", row["path"], row["line"],
              row["source"], "->", row["new"], flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
