"""The pages of the documentation: their snippets, and the commands that they show."""

import pathlib
import re
import shlex
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")))
)
# What a page calls by a letter, or leaves out.
RECONSTRUCT = "python -m experiments.reconstruct"
SHORT = {
    "R": f"{RECONSTRUCT} --dataset=cifar10",
    "W": f"{RECONSTRUCT} --dataset=cifar10 --attack=gauss_newton "
    "--warm_start=recursive",
    "...": RECONSTRUCT,
}
# A letter for a value.
VALUES = {"D": "photos", "DIR": "data"} | dict.fromkeys(("B", "N", "RATE", "WEIGHT"), 1)


class Snippet(NamedTuple):
    """needs: modules without which it cannot run, as the comment before it says."""

    code: str
    needs: tuple[str, ...]


def text(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def snippets(page: str, language: str = "python") -> list[Snippet]:
    """Fenced blocks of a language, in order."""
    fence = rf"(?:<!-- needs: ([^>]*) -->\n)?^```{language}\n(.*?)^```"
    found = re.findall(fence, text(page), re.S | re.M)
    return [Snippet(code, tuple(re.findall(r"[\w.]+", needs))) for needs, code in found]


def commands(page: str) -> list[list[str]]:
    """The words of all command lines, in blocks and within sentences and tables."""
    blocks = [code for code, _ in snippets(page, "sh")]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.S | re.M)
    for span in re.findall(r"`([^`]+)`", prose):
        first, _, rest = " ".join(span.split()).partition(" ")
        if first in SHORT and rest.startswith("--"):
            lines.append(f"{SHORT[first]} {rest}")
        elif first == "make" or span.startswith("python -m"):
            lines.append(f"{first} {rest}")
    return [words for words in map(_words, lines) if words]


def flags(page: str) -> list[str]:
    """The names of flags that stand alone in sentences: `--name` or `--name=value`."""
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.S | re.M)
    return re.findall(r"`--(\w+)[=`]", prose)


def links(page: str) -> list[str]:
    """The targets of all relative links, as paths from the root."""
    found = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text(page))
    folder = (ROOT / page).parent
    return [str((folder / path).resolve().relative_to(ROOT)) for path in found]


def _words(line: str) -> list[str]:
    words = [word for word in shlex.split(line, comments=True) if word != "..."]
    words = words[1:] if words[:1] == ["srun"] else words
    return [_with_value(word.removeprefix(".venv/bin/")) for word in words]


def _with_value(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name}={VALUES.get(value, value)}" if equals else word
