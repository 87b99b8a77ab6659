"""The table of a sweep for a paper, in LaTeX."""

from collections.abc import Iterable, Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def table(head: Sequence[str], lines: Iterable[Sequence[str]], says: str) -> str:
    """Returns a table of the package booktabs, its first column to the left.

    Args:
      head: of the columns.
      lines: as many fields each.
      says: a comment above it.
    """
    rows = [_line(line) for line in lines]
    return "\n".join((
        f"% {' '.join(says.split())}",
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        _line(head),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ))  # fmt: skip


def _line(fields: Iterable[str]) -> str:
    return " & ".join(map(escaped, fields)) + r" \\"


def escaped(text: str) -> str:
    """Returns text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(sign, sign) for sign in text)
