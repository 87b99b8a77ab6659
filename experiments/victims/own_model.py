"""A model of the reader's own code as a network, whatever framework it is of.

`--model=package.module:name` names a module class, or a function that returns a module,
an `adapters.Adapted` or a `models.Network`.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import models
from invertjax import adapters
from invertjax.adapters import Adapted, Mode
from invertjax.adapters.arguments import switches
from invertjax.adapters.equinox_module import needs_state
from invertjax.base import Key
from invertjax.cli import own_code

Shape = tuple[int, ...]
_DRAWN = ("rngs", "key")
_NNX, _LINEN, _EQUINOX, _TORCH = "flax.nnx", "flax.linen", "equinox", "torch.nn"
_GIVEN = ("image_shape", "num_classes", *_DRAWN)
_RETURNED = (
    "a module of Flax, Equinox or PyTorch, an adapters.Adapted or a models.Network"
)


class OwnModel(NamedTuple):
    """net: the network. fresh: whether its `init` makes new weights of a key.
    batch_norm: whether it has batch norms."""

    net: models.Network
    fresh: bool
    batch_norm: bool


def imported(text: str) -> Callable[..., Any]:
    """Returns the class or function that `--model` names.

    Raises:
      ValueError: if it cannot be imported, or is no such thing.
    """
    found = own_code.imported("model", text, "name")
    if _is_made(found):
        return lambda: found
    if not callable(found):
        raise ValueError(
            f"--model={text} is of type {type(found).__name__}: expected a module "
            f"class, or a function that returns {_RETURNED}."
        )
    return found


def build(text: str, image_shape: Shape, num_classes: int) -> OwnModel:
    """Makes the model for the images and classes of a data set.

    Args:
      text: `package.module:name`.
      image_shape: (H, W, C).
      num_classes: K.

    Raises:
      ValueError: naming --model, if it cannot be made for such images.
    """
    maker = imported(text)
    names = _names(text, maker)
    sizes = {"image_shape": image_shape, "num_classes": num_classes}
    sizes = {name: size for name, size in sizes.items() if name in names}

    def make(key: Key) -> Adapted | models.Network:
        drawn = {"rngs": nnx.Rngs(key), "key": jax.random.clone(key)}
        given = sizes | {name: drawn[name] for name in _DRAWN if name in names}
        return _adapted(maker, given, image_shape, jax.random.clone(key))

    try:
        first = make(jax.random.key(0))
        again = make if {*names} & {*_DRAWN} or _is(maker, _LINEN) else None
        made = _own(first, again, image_shape[2])
        jax.eval_shape(made.net.init, jax.random.key(0))
    except Exception as error:  # the reader's own code may raise anything
        said = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"--model={text} cannot be made as {text.partition(':')[2]}({said}): "
            f"{in_a_line(error)}"
        ) from None
    return made


def check(
    text: str, net: models.Network, image_shape: Shape, num_classes: int | None
) -> None:
    """Refuses a model that cannot be called, or whose outputs are no logits.

    Args:
      text: `package.module:name`.
      net: of `build`.
      image_shape: (H, W, C).
      num_classes: K; None: its outputs are what a loss of the reader's own takes.

    Raises:
      ValueError: naming --model and what it returns.
    """
    named = f"--model={text}"
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)  # as `init` has it

    def outputs(params: Any, buffers: Any, images: jax.Array) -> Any:
        return net.apply(params, buffers, images, True)[0]

    params, buffers = jax.eval_shape(net.init, jax.random.key(0))
    try:
        found = jax.eval_shape(outputs, params, buffers, images)
    except Exception as error:
        raise ValueError(
            f"{named} fails on images of shape {images.shape}: {in_a_line(error)}"
        ) from None
    shape = getattr(found, "shape", None)
    if num_classes is not None and shape != (2, num_classes):
        said = f"shape {shape}" if shape is not None else f"a {type(found).__name__}"
        raise ValueError(
            f"{named} returns {said} for images of shape {images.shape}: expected "
            f"logits of shape {(2, num_classes)}, or --loss=module:function of its "
            "outputs and labels."
        )


def in_a_line(error: Exception) -> str:
    """Returns what the reader's own code has raised, as a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _names(text: str, maker: Callable[..., Any]) -> list[str]:
    """Returns which of the arguments that a model may ask for it names."""
    # Classes of some frameworks are called by way of others that take anything.
    called = maker.__init__ if inspect.isclass(maker) else maker
    found = dict(inspect.signature(called).parameters)
    if inspect.isclass(maker):
        del found[next(iter(found))]  # self
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, one in found.items():
        needed = one.default is one.empty and one.kind not in variadic
        if needed and name not in _GIVEN:
            raise ValueError(
                f"--model={text} takes an argument {name!r} without a default: "
                f"expected others than {', '.join(_GIVEN)} to have one."
            )
    return [name for name in _GIVEN if name in found]


def _adapted(
    maker: Callable[..., Any], given: Mapping[str, Any], image_shape: Shape, key: Key
) -> Adapted | models.Network:
    """Returns what a class or function makes, adapted by its type."""
    if inspect.isclass(maker) and _is(maker, _EQUINOX) and needs_state(maker):
        maker = sys.modules[_EQUINOX].nn.make_with_state(maker)
    made = maker(**given)
    if isinstance(made, Adapted | models.Network):
        return made
    # An Equinox module may come with its state.
    module, *state = made if isinstance(made, tuple) and made else (made,)
    if _is(module, _EQUINOX):
        return adapters.from_equinox(module, *state)
    if _is(module, _LINEN):
        return _linen(module, image_shape, key)
    if _is(module, _NNX):
        return adapters.from_nnx(module)
    if _is(module, _TORCH):
        return adapters.from_torch(module)
    raise TypeError(f"it returns a {type(made).__name__}, expected {_RETURNED}")


def _is(found: Any, framework: str) -> bool:
    """Returns whether something is a module, or a class of modules, of a framework;
    one that nobody has imported has made none."""
    if framework not in sys.modules:
        return False
    kind = found if inspect.isclass(found) else type(found)
    return issubclass(kind, sys.modules[framework].Module)


def _is_made(found: Any) -> bool:
    """Returns whether something is a model already, and not what makes one."""
    frameworks = (_NNX, _LINEN, _EQUINOX, _TORCH)
    instance = not inspect.isclass(found) and any(_is(found, one) for one in frameworks)
    return instance or isinstance(found, Adapted | models.Network)


def _linen(module: Any, image_shape: Shape, key: Key) -> Adapted:
    """Returns a Linen module with fresh variables."""
    given = switches(inspect.signature(module.__call__).parameters, Mode(train=False))
    variables = module.init(key, jnp.zeros((1, *image_shape)), **given)
    return adapters.from_linen(module, variables)


def _own(
    first: Adapted | models.Network, again: Callable[[Key], Any] | None, channels: int
) -> OwnModel:
    """Returns a model as a network of pure functions.

    Args:
      first: what was made.
      again: makes another of a key; None: it would be the same.
      channels: of its images.
    """
    if isinstance(first, models.Network):
        buffers = jax.eval_shape(first.init, jax.random.key(0))[1]
        return OwnModel(first, True, bool(jax.tree.leaves(buffers)))
    # The arrays of a PyTorch module are made outside of JAX, and from no key.
    if first.framework == "PyTorch":
        again = None

    def init(key: Key) -> tuple[Any, Any]:
        if first.fresh or again is None:
            return first.init(key)
        made = again(key)
        # Modules of Equinox that were made one after the other differ in structure.
        return _like(first.params, made.params), _like(first.buffers, made.buffers)

    net = models.Network(
        init=init,
        apply=first.apply,
        statistics=None,
        features=None,
        head=None,
        last="",
        blocks=(),  # found in the loss
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )
    return OwnModel(net, first.fresh or again is not None, first.batch_norm)


def _like(first: Any, other: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(first), jax.tree.leaves(other))
