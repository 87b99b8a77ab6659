"""Where the dense layers of a straight program are, or why they cannot be peeled."""

from typing import NamedTuple

import jax

from invertjax.base import Params
from invertjax.rewrites import relus
from invertjax.rewrites.straight import Line, Straight

# What a weight or a bias may go through before it is used.
_SAME = frozenset({
    "broadcast_in_dim", "reshape", "squeeze", "copy", "copy_p", "convert_element_type",
})  # fmt: skip
# What images may go through so that each pixel is still one input of the layer.
_PER_PIXEL = _SAME | {"add", "sub", "mul", "div", "neg", "transpose", "rev"}


class Place(NamedTuple):
    """Where a layer is: numbers of values in a straight program, and of leaves."""

    inputs: int
    hidden: int
    weight: int
    bias: int
    transposed: bool
    product: int | None  # hidden @ next weight, where that comes next
    next_weight: int | None
    next_transposed: bool


def places(straight: Straight, params: Params) -> list[tuple[str, Place | str]]:
    """Returns the dense layers, by path, with where they are or why they cannot be
    peeled."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    aliases = _aliases(straight, len(paths))
    found: list[tuple[str, Place | str]] = []
    for line in straight.lines:
        if line.eqn.primitive.name == "dot_general" and line.reads[1] in aliases:
            keys = paths[aliases[line.reads[1]][0]][0]
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            place = _place(straight, line, aliases)
            if place is not None:
                found.append((path, place))
    return found


def per_pixel(straight: Straight, wanted: int) -> bool:
    """Says whether a value holds the pixels of images one by one, moved and scaled."""
    needed, images = straight.needed([wanted]), straight.inputs[-1]
    for line in straight.lines:
        if not needed.intersection(line.writes):
            continue
        of_images = [images in straight.needed([i]) for i in line.reads]
        if not any(of_images):
            continue
        name = line.eqn.primitive.name
        if name not in _PER_PIXEL or sum(of_images) > 1:
            return False
        if name == "div" and not of_images[0]:
            return False
    return True


def _place(
    straight: Straight, line: Line, aliases: dict[int, tuple[int, bool]]
) -> Place | str | None:
    """Returns where a layer is, or why it cannot be peeled; None for the last one."""
    turned = _oriented(straight, line, aliases)
    if turned is None:
        return "sees several positions of an image"
    after, bias = _sum_with_bias(straight, line.writes[0], aliases)
    if straight.outputs[0] in (line.writes[0], after):
        return None
    if bias is None:
        return "has no bias, and its gradient gives images up to scale only"
    step = _one_reader(straight, after)
    if step is None or not relus.is_relu(step.eqn):
        name = step.eqn.primitive.name if step else "several others"
        return f"is followed by {name}, not by a relu"
    hidden = step.writes[0]
    if straight.inputs[-1] in straight.needed(straight.outputs, [hidden]):
        return "has a shortcut around it"
    leaf = aliases[line.reads[1]][0]
    if any(_uses(straight, aliases, of) != 1 for of in (leaf, bias)):
        return "is used more than once"
    return Place(
        line.reads[0], hidden, leaf, bias, turned, *_next(straight, hidden, aliases)
    )


def _next(
    straight: Straight, hidden: int, aliases: dict[int, tuple[int, bool]]
) -> tuple[int | None, int | None, bool]:
    """Returns the product with the next layer's weight, that weight, and whether it is
    stored the other way round; or None."""
    line = _one_reader(straight, hidden)
    if line is None or line.eqn.primitive.name != "dot_general":
        return None, None, False
    if line.reads[0] != hidden or line.reads[1] not in aliases:
        return None, None, False
    turned, leaf = _oriented(straight, line, aliases), aliases[line.reads[1]][0]
    product = line.writes[0]
    whole = straight.inputs[-1] not in straight.needed(straight.outputs, [product])
    if turned is None or not whole or _uses(straight, aliases, leaf) != 1:
        return None, None, False
    return product, leaf, turned


def _oriented(
    straight: Straight, line: Line, aliases: dict[int, tuple[int, bool]]
) -> bool | None:
    """Returns whether rows times a weight take it as `[out, in]`; None if no rows."""
    (left, right), batched = line.eqn.params["dimension_numbers"]
    rows = straight.avals[line.reads[0]].ndim
    if batched[0] or rows != 2 or tuple(left) != (1,) or len(right) != 1:
        return None
    return aliases[line.reads[1]][1] != (right[0] == 1)


def _aliases(straight: Straight, count: int) -> dict[int, tuple[int, bool]]:
    """Returns which values are leaves of the params, and whether they are turned."""
    found = {value: (i, False) for i, value in enumerate(straight.inputs[:count])}
    for line in straight.lines:
        name, source = line.eqn.primitive.name, line.reads[0] if line.reads else -1
        if source not in found or name not in (*_SAME, "transpose"):
            continue
        leaf, turned = found[source]
        shape = tuple(straight.avals[straight.inputs[leaf]].shape)
        new = tuple(straight.avals[line.writes[0]].shape)
        if len(shape) == 2 and sorted(new) == sorted(shape):
            found[line.writes[0]] = leaf, turned != (name == "transpose")
        elif len(shape) == 1 and new[-1:] == shape:  # it may be spread over rows
            found[line.writes[0]] = leaf, False
    return found


def _uses(straight: Straight, aliases: dict[int, tuple[int, bool]], leaf: int) -> int:
    of_leaf = [value for value, (of, _) in aliases.items() if of == leaf]
    lines = {i for value in of_leaf for i, line in enumerate(straight.lines)
             if value in line.reads and line.writes[0] not in aliases}  # fmt: skip
    return len(lines)


def _sum_with_bias(
    straight: Straight, product: int, aliases: dict[int, tuple[int, bool]]
) -> tuple[int, int | None]:
    """Returns the value after the bias was added, and the leaf of the bias."""
    line = _one_reader(straight, product)
    while line is not None and line.eqn.primitive.name in _SAME:
        product = line.writes[0]
        line = _one_reader(straight, product)
    if line is None or line.eqn.primitive.name != "add":
        return product, None
    other = line.reads[1] if line.reads[0] == product else line.reads[0]
    if other not in aliases:
        return product, None
    leaf = aliases[other][0]
    one_axis = straight.avals[straight.inputs[leaf]].ndim == 1
    return line.writes[0], leaf if one_axis else None


def _one_reader(straight: Straight, value: int) -> Line | None:
    readers = straight.readers(value)
    return readers[0] if len(readers) == 1 else None
