"""One place for what is slow to make: networks, compiled functions, programs."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

from invertjax.driver import quick

_MISSING = object()

Static = tuple[Hashable, ...]  # a key: what kind of thing, and all that is static
F = TypeVar("F", bound=Callable[..., Any])


class Cache:
    """Keeps what was made, by a key of all that is static in it.

    Arrays travel as arguments, so that runs which differ in numbers only have one key.
    Threads may share a cache: what one makes, the others wait for. A key is a tuple
    whose first entry says what kind of thing it is of.

    Args:
      most: things of each kind that are kept; the least recently used is dropped.
    """

    def __init__(self, most: int = 32):
        self.most = most
        self._made: dict[Hashable, collections.OrderedDict[Static, Any]] = {}
        self._making: dict[Static, threading.Lock] = {}
        self._lock = threading.Lock()

    def __call__(
        self, key: Static, make: Callable[[], Any], *, most: int | None = None
    ) -> Any:
        """Returns what `make()` returned when this key was first asked for.

        Args:
          key: hashable, all that is static.
          make: called if it is not there.
          most: of this kind that are kept, in place of the cache's own number, for
            things that hold large arrays.
        """
        with self._lock:
            kind = self._made.setdefault(key[0], collections.OrderedDict())
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                made = kind.get(key, _MISSING)
            made = make() if made is _MISSING else made
        with self._lock:
            kind[key] = made
            kind.move_to_end(key)
            while len(kind) > (most or self.most):
                dropped, _ = kind.popitem(last=False)
                self._making.pop(dropped, None)
        return made

    def jit(
        self, key: Static, function: Callable[[], F], *, briefly: bool = False
    ) -> F:
        """Returns `function()` compiled, once for each key.

        Args:
          key: all that is static.
          function: returns what is to be compiled.
          briefly: whether by `quick.jit`, for what takes longer to compile than to run.
        """
        compiler = quick.jit if briefly else jax.jit
        return self(key, lambda: compiler(function()))


def forget() -> None:
    """Makes JAX forget all functions that were compiled so far.

    It keeps traces and executables as long as the process runs, some 10 to 50 MB for
    every attack, which a long sweep would add up. Programs of `driver.build` still run;
    functions of a `Cache` are traced again when they are next called.
    """
    jax.clear_caches()
