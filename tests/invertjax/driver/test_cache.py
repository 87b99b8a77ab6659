"""One place for what is slow to make."""

import threading

import jax.numpy as jnp
import pytest

from invertjax.driver import Cache
from invertjax.driver.cache import forget


def test_what_is_there_is_not_made_again():
    cache, made = Cache(), []
    for key in ("a", "b", "a"):
        assert cache(("kind", key), lambda key=key: made.append(key) or key) == key
    assert made == ["a", "b"]


def test_the_least_recently_used_of_a_kind_goes_first():
    cache, made = Cache(most=2), []

    def ask(kind, name, **options):
        cache((kind, name), lambda: made.append(name), **options)

    for name in ("a", "b", "a", "c", "a", "b"):  # c pushes b out, as a was used last
        ask("kind", name)
    assert made == ["a", "b", "c", "b"]
    ask("other", "d", most=1)
    ask("other", "e", most=1)
    ask("kind", "a")  # kinds do not push one another out
    ask("other", "d", most=1)
    assert made[4:] == ["d", "e", "d"]


def test_threads_wait_for_what_another_one_makes():
    cache, made, entered = Cache(), [], threading.Event()
    going_on = threading.Event()

    def make():
        entered.set()
        going_on.wait(600)
        made.append(1)
        return len(made)

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(cache(("kind", 0), make)))
        for _ in range(4)
    ]
    threads[0].start()
    entered.wait(600)
    for thread in threads[1:]:
        thread.start()
    going_on.set()
    for thread in threads:
        thread.join()
    assert found == [1] * 4 and made == [1]


def test_what_could_not_be_made_is_tried_again():
    cache = Cache()
    with pytest.raises(ZeroDivisionError):
        cache(("kind", 0), lambda: 1 // 0)
    assert cache(("kind", 0), lambda: 7) == 7


def test_functions_are_compiled_once():
    cache, traced = Cache(), []

    def function():
        def square(x):
            traced.append(x)
            return x * x

        return square

    for value in (2.0, 3.0):
        assert cache.jit(("square",), function)(jnp.array(value)) == value**2
    assert len(traced) == 1


def test_what_is_forgotten_is_traced_again_when_it_is_called():
    cache, traced = Cache(), []
    function = cache.jit(("double",), lambda: lambda x: traced.append(1) or 2 * x)
    for _ in range(2):
        assert function(jnp.array(2.0)) == 4.0
    forget()
    assert function(jnp.array(2.0)) == 4.0 and len(traced) == 2
