"""Tables as text."""


def printable(text: str) -> str:
    r"""Returns text in which all that a terminal would obey, and not show, is written
    out, such as \x1b; names from others may hold anything."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode()
        for one in text
    )


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Returns columns of text; the first is aligned left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def render(line: tuple[str, ...]) -> str:
        first, *rest = [cell.ljust(w) for cell, w in zip(line, widths, strict=True)]
        rest = [cell.strip().rjust(w) for cell, w in zip(rest, widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([render(header), rule, *map(render, lines[1:])])
