"""Turns the Markdown of our docstrings into reStructuredText, before napoleon reads it.

Our docstrings are Google's, with the Markdown that editors and forges show: code
between single backticks, tables of bars, code and formulas indented by four spaces, and
the fields of a NamedTuple as lines `name: what it is`.
"""

import ast
import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")
# What `jax.typing.ArrayLike` is a name for.
_ARRAY_LIKE = re.compile(
    r"(~?[\w.]*Array \| ~?[\w.]*ndarray \| ~?[\w.]*bool \| ~?[\w.]*number"
    r" \| bool \| int \| float \| complex)"
)
_RULE = re.compile(r"^\s*\|[-|: ]+\|$")
_CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}


def _process(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    del app, name, options
    if what == "class":
        lines[:] = _with_attributes(lines, getattr(obj, "__annotations__", {}))
    lines[:] = restructured(lines)


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> Any:
    """Leaves out the fields of a NamedTuple: its docstring has them."""
    del app, what, name, skip, options
    return True if type(obj).__name__ == "_tuplegetter" else None


def _signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    arguments: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Leaves out that of a NamedTuple: its docstring has the fields."""
    del app, name, options
    if what == "class" and hasattr(obj, "_fields"):
        return "", None
    return arguments and _ARRAY_LIKE.sub("ArrayLike", arguments), returns


def _with_attributes(lines: list[str], fields: dict[str, Any]) -> list[str]:
    """Puts lines `name: what it is` of a class under a heading of their own."""
    if "Attributes:" in lines:
        return lines
    names = rf"({'|'.join(fields)})" if fields else "(?!)"
    own = re.compile(rf"^{names}(, {names})*: ")
    found: list[str] = []
    inside = False
    for line in lines:
        if own.match(line):
            # Several fields on one line are several sentences.
            if not inside:
                found += ["Attributes:"]
            inside = True
        elif not line.strip() or line.startswith(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")):
            inside = False
        found.append(f"  {line}" if inside else line)
    return found


def restructured(lines: list[str]) -> list[str]:
    """Returns reStructuredText of a docstring's lines."""
    text = "\n".join(lines)
    text = _CODE.sub(_literal_span, text)
    found: list[str] = []
    lines, section, i = text.split("\n"), False, 0
    while i < len(lines):
        line = lines[i]
        if line.strip() and not line.startswith(" "):
            section = bool(_SECTION.match(line))
        if _RULE.match("".join(lines[i + 1 : i + 2])):
            block = _block(lines, i, lambda line: line.lstrip().startswith("|"))
            found += _table(block)
        elif line.startswith("    ") and not section and not (found and found[-1]):
            block = _block(lines, i, lambda line: line[:4].strip() == "")
            found += _literal(block)
        else:
            block = [line]
            found.append(_escaped(line))
        i += len(block)
    return found


def _literal_span(match: re.Match[str]) -> str:
    """Returns a code span, apart from letters that follow it, as in `x`s."""
    apart = r"\ " if match.string[match.end() : match.end() + 1].isalnum() else ""
    return f"``{' '.join(match[1].split())}``{apart}"


def _escaped(line: str) -> str:
    """Returns a line of prose in which bars, as in |x|, are no substitutions."""
    parts = line.split("``")
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    return "``".join(parts)


def _block(lines: list[str], first: int, inside: Any) -> list[str]:
    last = first
    while last < len(lines) and inside(lines[last]):
        last += 1
    while not lines[last - 1].strip():
        last -= 1
    return lines[first:last]


def _table(lines: list[str]) -> list[str]:
    """Returns a list-table of a Markdown table, its second line being the rule."""
    indent = " " * (len(lines[0]) - len(lines[0].lstrip()))
    found = ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for line in [lines[0], *lines[2:]]:
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        mark = "*"
        for cell in cells:
            found.append(f"{indent}   {mark} - {cell.strip()}".rstrip())
            mark = " "
    return [*found, ""]


def _literal(lines: list[str]) -> list[str]:
    """Returns a code block, of Python where it is Python."""
    plain = [line.replace("``", "`") for line in lines]
    try:
        ast.parse("\n".join(line[4:] for line in plain))
        language = "python"
    except SyntaxError:
        language = "text"
    return ["", f".. code-block:: {language}", "", *plain, ""]
