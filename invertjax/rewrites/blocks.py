"""The blocks of any network, found in a traced loss.

Attacks that go through a network layer by layer take it as blocks, `(params, features)
-> features` each, from images to logits. A loss that is given as one function is traced
here, and cut where everything that it knows of the images passes through one array:

    chain = blocks.cut(loss_fn, params, batch)
    attack = attacks.recursive(..., blocks=chain.blocks, loss=chain.loss)

Every block has one dense layer or convolution, where the network is a chain. Where
shortcuts cross there is no such array, and what they span is one longer block.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from invertjax.base import Batch, Block, Loss, Params
from invertjax.rewrites import equations

_jax: Any = jax  # for settings that JAX's own annotations leave unknown

Equation = core.JaxprEqn
Place = tuple[int, Any]  # an equation, and the variable that it computes


class Chain(NamedTuple):
    """A loss in parts: `loss` of the last block's output, and labels.

    blocks: `(params, features) -> features` each, from images `[B, H, W, C]` to logits.
      Features are `[B, ...]`, floats, of any B for which the loss can be traced.
    loss: `(logits, labels) -> []`, what follows the last layer; it reads no params.
    """

    blocks: tuple[Block, ...]
    loss: Callable[[jax.Array, Any], jax.Array]


def cut(loss_fn: Loss, params: Params, batch: Batch) -> Chain:
    """Cuts the network of a loss into blocks.

    Between two layers the cut is at the smallest array, of several the last one: behind
    activation, pooling and flattening. What the network does behind its last params,
    such as a softmax, belongs to the loss. Blocks compute what the loss computes, with
    the derivative rules of its own, and may be transformed like any function. Each
    traces the loss once for every size of a batch; it must not close over tracers.

    Args:
      loss_fn: `(params, batch) -> []`, in JAX.
      params: of the network, or their shapes.
      batch: `{"image": [B, H, W, C], "label": [B, ...]}`, or their shapes; it may have
        more, of which neither network nor loss reads anything.

    Raises:
      ValueError: with the reason in one sentence, where the loss is not of this form.
        Blocks raise it for features of other shapes or types than those that the block
        before them returns.
    """
    if not {"image", "label"} <= set(batch):
        raise ValueError(f"Expected a batch of {sorted(batch)} with 'image', 'label'.")
    shapes = jax.eval_shape(lambda *trees: trees, params, dict(batch))
    cutting = _Cutting(loss_fn, *shapes)
    count = len(cutting.between) - 1
    blocks = tuple(functools.partial(cutting.block, i) for i in range(count))
    return Chain(blocks, cutting.loss)


class _Traced(NamedTuple):
    """A loss as equations, of which none does nothing but call others.

    params, labels: variables of their leaves. others: of the leaves of further entries
    of the batch, by name.
    """

    eqns: list[Equation]
    consts: dict[Any, Any]
    params: list[Any]
    images: Any
    labels: list[Any]
    others: dict[str, list[Any]]
    value: Any


class _Cut(NamedTuple):
    """ends: variables from the images to the logits. pieces: the equations from each to
    the next one, and from the last to the loss."""

    traced: _Traced
    ends: list[Any]
    pieces: list[list[Equation]]

    def run(self, i: int, values: dict[Any, Any]) -> jax.Array:
        outvar = [*self.ends, self.traced.value][i + 1]
        values = self.traced.consts | values
        (found,) = equations.evaluate(self.pieces[i], [outvar], values, equations.bind)
        return jnp.asarray(found)


class _Cutting:
    """Cuts of one loss, at any size of the batch.

    between: the shapes of one image's images, features and logits, and their types.
    """

    def __init__(self, loss_fn: Loss, params: Params, batch: Batch) -> None:
        self._loss_fn, self._params, self._batch = loss_fn, params, batch
        self._found: dict[Any, _Cut] = {}
        self.between = _sides(_cut_apart(_traced(loss_fn, params, batch)))

    def block(self, i: int, params: Params, features: jax.Array) -> jax.Array:
        features, leaves = self._checked(i, features), jax.tree.leaves(params)
        wanted = [leaf.shape for leaf in jax.tree.leaves(self._params)]
        if [jnp.shape(leaf) for leaf in leaves] != wanted:
            raise ValueError(
                "Expected the params whose loss was cut, or of their shapes."
            )
        found = self._at(len(features), self._batch["label"])
        values = dict(zip(found.traced.params, leaves, strict=True))
        return found.run(i, values | {found.ends[i]: features})

    def loss(self, logits: jax.Array, labels: Any) -> jax.Array:
        logits = self._checked(len(self.between) - 1, logits)
        shapes = jax.eval_shape(lambda tree: tree, labels)
        found = self._at(len(logits), shapes)
        values = dict(zip(found.traced.labels, jax.tree.leaves(labels), strict=True))
        return found.run(len(found.ends) - 1, values | {found.ends[-1]: logits})

    def _checked(self, i: int, features: jax.Array) -> jax.Array:
        features = jnp.asarray(features)
        if (features.shape[1:], features.dtype) != self.between[i] or not features.ndim:
            sides, dtype = self.between[i]
            sizes = ", ".join(["B", *map(str, sides)])
            raise ValueError(
                f"Expected features of shape {features.shape} and type "
                f"{features.dtype} to be ({sizes}) of type {dtype}, as block {i} of "
                f"{len(self.between) - 1} takes them."
            )
        return features

    def _at(self, size: int, labels: Any) -> _Cut:
        before = self._batch["image"].shape[0]

        def resized(leaf: Any) -> Any:
            if leaf.shape[:1] != (before,):
                return leaf
            return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)

        batch = jax.tree.map(resized, {**self._batch, "label": labels})
        # Both are read while a product is traced.
        config = _jax.config
        how = config.jax_default_matmul_precision, config.jax_enable_x64
        key = how, str(batch["label"]), size
        if key not in self._found:
            found = _cut_apart(_traced(self._loss_fn, self._params, batch))
            if _sides(found) != self.between:
                raise ValueError(
                    f"The loss is another one for batches of {size} than for batches "
                    f"of {before}: its blocks differ in number or shapes."
                )
            self._found[key] = found
        return self._found[key]


def _sides(found: _Cut) -> list[tuple[tuple[int, ...], Any]]:
    return [(end.aval.shape[1:], end.aval.dtype) for end in found.ends]


def _traced(loss_fn: Loss, params: Params, batch: Batch) -> _Traced:
    others = {name: batch[name] for name in batch if name not in ("image", "label")}
    trees = params, batch["image"], batch["label"], *others.values()

    def loss(params: Params, image: Any, label: Any, *rest: Any) -> jax.Array:
        more = dict(zip(others, rest, strict=True))
        return loss_fn(params, {**more, "image": image, "label": label})

    body = jax.make_jaxpr(loss)(*trees)

    def inlined(*leaves: Any) -> list[Any]:
        return equations.inlined(body, leaves, _inlining)

    flat = jax.make_jaxpr(inlined)(*jax.tree.leaves(trees))
    (value, *more), variables = flat.jaxpr.outvars, iter(flat.jaxpr.invars)
    if more or value.aval.shape:
        raise ValueError("Expected a loss that returns a scalar.")
    of_params, (images,), of_labels, *rest = (
        list(itertools.islice(variables, len(jax.tree.leaves(tree)))) for tree in trees
    )
    consts = dict(zip(flat.jaxpr.constvars, flat.consts, strict=True))
    named = dict(zip(others, rest, strict=True))
    eqns = equations.needed(flat.jaxpr.eqns, value, set())
    return _Traced(eqns, consts, of_params, images, of_labels, named, value)


def _inlining(eqn: Equation, given: list[Any]) -> list[Any]:
    body = equations.called(eqn)
    if body is None:
        return equations.bind(eqn, given)
    return equations.inlined(body, given, _inlining)


def _cut_apart(traced: _Traced) -> _Cut:
    eqns = traced.eqns
    read = equations.read(eqns)
    for name, variables in traced.others.items():
        if not read.isdisjoint(variables):
            raise _refused(f"it reads batch[{name!r}], which no block is given")
    images = equations.depending(eqns, [traced.images])
    params = equations.depending(eqns, traced.params)
    layers = [i for i, eqn in enumerate(eqns) if _is_layer(eqn, images, params)]
    if not layers:
        raise _refused("no dense layer or convolution with params sees the images")
    places = _places(traced, images)
    logits = _logits(traced, places, layers[-1])
    ends = [traced.images, *_between(places, layers), logits]
    if len(ends) == 2 and len(layers) > 1:
        raise _refused("no single array between images and logits has all they pass on")
    pieces = [
        equations.needed(eqns, end, {start})
        for start, end in itertools.pairwise([*ends, traced.value])
    ]
    # Their gradient would be that of no block.
    times = [var for piece in pieces for var in equations.read(piece)]
    if any(times.count(var) > 1 for var in traced.params):
        raise _refused("two of its blocks read one array of the params")
    return _Cut(traced, ends, pieces)


def _is_layer(eqn: Equation, images: set[Any], params: set[Any]) -> bool:
    read = equations.read([eqn])
    both = read & images and (read & params) - images
    return bool(both) and equations.holds(eqn, _is_product)


def _is_product(eqn: Equation) -> bool:
    return eqn.primitive.name in ("dot_general", "conv_general_dilated")


def _places(traced: _Traced, images: set[Any]) -> list[Place]:
    """Returns where all that later equations know of the images is in one array.

    It is so right after the equation that computes the array if no other variable that
    depends on the images is read from there on.
    """
    eqns, found, live = traced.eqns, [], {traced.images}
    last = {var: i for i, eqn in enumerate(eqns) for var in equations.read([eqn])}
    last[traced.value] = len(eqns)
    for i, eqn in enumerate(eqns):
        computed = images.intersection(eqn.outvars)
        live = {var for var in live | computed if last.get(var, -1) > i}
        if len(live) == 1 and live <= computed:
            found += [(i, var) for var in live if _is_a_batch(var, traced.images)]
    return found


def _is_a_batch(var: Any, images: Any) -> bool:
    """Returns whether a variable has floats with one row for each image."""
    floats = jnp.issubdtype(var.aval.dtype, jnp.floating)
    return floats and var.aval.shape[:1] == images.aval.shape[:1]


def _logits(traced: _Traced, places: list[Place], last: int) -> Any:
    """Returns the first array from which, and labels, the loss follows."""
    labelled = equations.depending(traced.eqns, traced.labels)
    if not labelled.isdisjoint(traced.eqns[last].outvars):
        raise _refused("the labels enter before its last layer")
    behind = [var for i, var in places if i >= last and var not in labelled]
    if not behind:
        raise _refused("what follows its last layer reads more of the images than that")
    for var in behind:
        rest = equations.needed(traced.eqns, traced.value, {var})
        if equations.read(rest).isdisjoint(traced.params):
            return var
    raise _refused("what follows its logits reads params, as a weight decay does")


def _between(places: list[Place], layers: list[int]) -> list[Any]:
    """Returns the variables to cut at between layers, where there are any."""
    found = []
    for layer, following in itertools.pairwise(layers):
        here = [var for i, var in places if layer <= i < following]
        least = min((var.aval.size for var in here), default=0)
        found += [var for var in here if var.aval.size == least][-1:]
    return found


def _refused(reason: str) -> ValueError:
    return ValueError(f"The loss cannot be cut into blocks: {reason}.")
