"""A model of the reader's own code, named on a command line, of whatever framework.

`--model=package.module:name` names a module class, or a function that returns a module
or an `adapters.Adapted`.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from invertjax import adapters
from invertjax.adapters import Adapted, Mode
from invertjax.adapters.arguments import switches
from invertjax.adapters.equinox_module import needs_state
from invertjax.base import Key
from invertjax.cli import arrays, own_code

_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown

Shape = tuple[int, ...]
Also = tuple[type, ...]  # what a caller takes beside an Adapted

_DRAWN = ("rngs", "key")
_NNX, _LINEN, _EQUINOX, _TORCH = "flax.nnx", "flax.linen", "equinox", "torch.nn"
_GIVEN = ("image_shape", "num_classes", *_DRAWN)
RETURNED = "a module of Flax, Equinox or PyTorch, or an adapters.Adapted"


class Maker(NamedTuple):
    """How a model is made.

    make: `key -> Adapted`, or what else the caller takes.
    fresh: whether what it makes depends on the key.
    called: the call in words, for errors.
    """

    make: Callable[[Key], Any]
    fresh: bool
    called: str


def imported(text: str, also: Also = ()) -> Callable[..., Any]:
    """Returns the class or function that `--model` names.

    Args:
      text: `package.module:name`.
      also: types that it may return beside modules and an `Adapted`.

    Raises:
      ValueError: if it cannot be imported, or is no such thing.
    """
    found = own_code.imported("model", text, "name")
    if _is_made(found, also):
        return lambda: found
    if not callable(found):
        raise ValueError(
            f"--model={text} is of type {type(found).__name__}: expected a module "
            f"class, or a function that returns {_returned(also)}."
        )
    return found


def maker(text: str, image_shape: Shape, num_classes: int, also: Also = ()) -> Maker:
    """Returns what makes the model for such images and classes.

    Args:
      text: `package.module:name`.
      image_shape: (H, W, C).
      num_classes: K.
      also: see `imported`.

    Raises:
      ValueError: naming --model, if it needs other arguments than it can be given.
    """
    made_by = imported(text, also)
    names = _names(text, made_by)
    sizes = {"image_shape": image_shape, "num_classes": num_classes}
    sizes = {name: size for name, size in sizes.items() if name in names}

    def make(key: Key) -> Any:
        drawn = {name: _drawn(name, key) for name in _DRAWN if name in names}
        return _adapted(
            made_by, sizes | drawn, image_shape, _jax.random.clone(key), also
        )

    said = ", ".join(f"{name}={size}" for name, size in sizes.items())
    fresh = bool({*names} & {*_DRAWN}) or _is(made_by, _LINEN)
    return Maker(make, fresh, f"{text.partition(':')[2]}({said})")


def adapted(text: str, image_shape: Shape, num_classes: int) -> Adapted:
    """Returns the model that `--model` names, for such images and classes.

    Raises:
      ValueError: naming --model, if it cannot be made.
    """
    found = maker(text, image_shape, num_classes)
    try:
        return found.make(jax.random.key(0))
    except Exception as error:  # the reader's own code may raise anything
        raise cannot(text, found, error) from None


def cannot(text: str, found: Maker, error: Exception) -> ValueError:
    """Returns the error of a model whose own code fails."""
    return ValueError(
        f"--model={text} cannot be made as {found.called}: {in_a_line(error)}"
    )


def apart(
    held: Mapping[str, Any], buffers: Any, named: str
) -> tuple[dict[str, Any], Any]:
    """Returns a file's params alone, and the buffers: those that are beside the params,
    as in a state_dict; else the model's own.

    Args:
      held: arrays of the file by their paths.
      buffers: the model's own.
      named: the file, for errors.
    """
    own = arrays.flat(buffers)
    beside = {name: leaf for name, leaf in held.items() if name in own}
    if beside:
        buffers = arrays.as_tree({**own, **beside}, buffers, named)
    return {name: leaf for name, leaf in held.items() if name not in own}, buffers


def in_a_line(error: Exception) -> str:
    """Returns what the reader's own code has raised, as a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _drawn(name: str, key: Key) -> Any:
    """Returns an argument that a module draws its weights from."""
    if name == "key":
        return _jax.random.clone(key)
    from flax import nnx  # only NNX modules ask for it

    return nnx.Rngs(key)


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
    maker: Callable[..., Any],
    given: Mapping[str, Any],
    image_shape: Shape,
    key: Key,
    also: Also,
) -> Any:
    """Returns what a class or function makes, adapted by its type."""
    if inspect.isclass(maker) and _is(maker, _EQUINOX) and needs_state(maker):
        maker = sys.modules[_EQUINOX].nn.make_with_state(maker)
    made: Any = maker(**given)
    if _is_one(made, also):
        return made
    # An Equinox module may come with its state.
    module, *state = _parts(made)
    if _is(module, _EQUINOX):
        return adapters.from_equinox(module, *state)
    if _is(module, _LINEN):
        return _linen(module, image_shape, key)
    if _is(module, _NNX):
        return adapters.from_nnx(module)
    if _is(module, _TORCH):
        return adapters.from_torch(module)
    raise TypeError(f"it returns a {type(made).__name__}, expected {_returned(also)}")


def _parts(made: Any) -> list[Any]:
    return [*made] if isinstance(made, tuple) and made else [made]


def _is(found: Any, framework: str) -> bool:
    """Returns whether something is a module, or a class of modules, of a framework;
    one that nobody has imported has made none."""
    if framework not in sys.modules:
        return False
    kind = found if inspect.isclass(found) else found.__class__
    return issubclass(kind, sys.modules[framework].Module)


def _is_made(found: Any, also: Also) -> bool:
    """Returns whether something is a model already, and not what makes one."""
    frameworks = (_NNX, _LINEN, _EQUINOX, _TORCH)
    instance = not inspect.isclass(found) and any(_is(found, one) for one in frameworks)
    return instance or _is_one(found, also)


def _returned(also: Also) -> str:
    """Returns in words what a function may return."""
    more = (f", or a {one.__module__.split('.')[0]}.{one.__name__}" for one in also)
    return RETURNED + "".join(more)


def _is_one(found: Any, also: Also) -> bool:
    return isinstance(found, (Adapted, *also))


def _linen(module: Any, image_shape: Shape, key: Key) -> Adapted:
    """Returns a Linen module with fresh variables."""
    given = switches(inspect.signature(module.__call__).parameters, Mode(train=False))
    variables = module.init(key, np.zeros((1, *image_shape), np.float32), **given)
    return adapters.from_linen(module, variables)
