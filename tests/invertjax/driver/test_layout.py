"""Where trials go, from numbers alone: nothing is compiled."""

import dataclasses

import jax
import numpy as np
import pytest

from invertjax.driver import layout, memory


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as a layout looks at."""

    id: int
    process_index: int
    platform: str = "cpu"


def machines(*counts):
    """Processes with so many devices each."""
    owners = [process for process, count in enumerate(counts) for _ in range(count)]
    return [Device(i, process) for i, process in enumerate(owners)]


def shape(sides):
    return sides.mesh.devices.shape


@pytest.mark.parametrize(
    "devices, targets, restarts, expected",
    [
        (1, 5, 3, (1, 1)),
        (8, 8, 1, (8, 1)),
        (8, 16, 3, (8, 1)),  # of equals the most rows
        (8, 1, 8, (1, 8)),
        (8, 2, 4, (2, 4)),
        (8, 4, 3, (2, 3)),  # as long as 4 x 2, which takes two devices more
        (8, 3, 1, (3, 1)),  # never more devices than trials
        (4, 5, 1, (3, 1)),  # two lines each, and the fewest devices for it
        (3, 1, 4, (1, 2)),
    ],
)
def test_the_busiest_device_has_the_fewest_trials(devices, targets, restarts, expected):
    sides = layout.choose(machines(devices), targets, restarts)
    assert shape(sides) == expected
    rows, columns = expected
    assert sides.targets % rows == 0 and 0 <= sides.targets - targets < rows
    assert sides.restarts % columns == 0 and 0 <= sides.restarts - restarts < columns
    assert sides.local == (sides.targets // rows, sides.restarts // columns)


@pytest.mark.parametrize(
    "targets, restarts, at_once, expected",
    [
        (6, 4, None, 24),
        (6, 4, 24, 24),
        (6, 4, 12, 12),
        (6, 4, 23, 12),  # whole targets, as many as divide
        (6, 4, 4, 4),
        (6, 4, 3, 2),  # a share of one target's restarts
        (6, 4, 1, 1),
        (7, 1, 6, 1),  # a prime number of lines
    ],
)
def test_trials_at_once_divide_what_falls_to_a_device(
    targets, restarts, at_once, expected
):
    sides = layout.choose(machines(1), targets, restarts, at_once=at_once)
    assert sides.at_once == expected


@pytest.mark.parametrize("at_once", [None, 1, 5, 8])
def test_coupled_restarts_stay_on_one_device(at_once):
    sides = layout.choose(machines(8), 3, 4, at_once=at_once, coupled=True)
    assert shape(sides) == (3, 1)
    assert sides.at_once == 4


@pytest.mark.parametrize(
    "counts, targets, restarts, coupled, expected",
    [
        ((1, 1), 1, 1, False, (2, 1)),  # one trial, done by both
        ((2, 2), 1, 1, False, (2, 1)),
        ((2, 2), 3, 1, False, (3, 1)),
        ((4, 4), 1, 8, False, (1, 8)),
        ((2, 2), 1, 4, True, (2, 1)),
        ((1, 1, 1), 2, 1, False, (3, 1)),
    ],
)
def test_every_process_has_a_part(counts, targets, restarts, coupled, expected):
    sides = layout.choose(machines(*counts), targets, restarts, coupled=coupled)
    assert shape(sides) == expected
    owners = {device.process_index for device in sides.mesh.devices.flat}
    assert owners == set(range(len(counts)))


def test_a_layout_says_what_it_is():
    one = layout.choose(machines(1), 2, 3)
    assert (
        str(one)
        == "groups of 2 targets x 3 restarts on 1 cpu device, 6 at once on each"
    )
    four = layout.choose(machines(4), 5, 1)
    assert str(four).startswith("groups of 6 targets x 1 restarts on 3 cpu devices,")


def test_alone_a_process_gathers_its_own():
    np.testing.assert_array_equal(layout.gather(7), [7])
    tree = {"a": jax.numpy.arange(3), "b": jax.numpy.ones((2, 2))}
    fetched = layout.fetch(layout.place(tree, layout.choose(jax.devices(), 1, 1).mesh))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(fetched))
    np.testing.assert_array_equal(fetched["a"], [0, 1, 2])


def sides_of(targets, restarts, at_once, coupled=False):
    return layout.choose(
        machines(1), targets, restarts, at_once=at_once, coupled=coupled
    )


@pytest.mark.parametrize(
    "sides, needed, expected",
    [
        (sides_of(8, 1, 8), 100, None),  # just fits
        (sides_of(8, 1, 8), 200, (8, 4)),
        (sides_of(8, 1, 8), 101, (8, 7)),  # fewer by one at least
        (sides_of(8, 1, 8), 10_000, (8, 1)),
        (sides_of(8, 1, 1), 200, (4, 1)),  # nothing left but fewer targets
        (sides_of(8, 1, 1), 101, (7, 1)),
        (sides_of(8, 1, 1), 10_000, (1, 1)),
        (sides_of(8, 4, 32, coupled=True), 10_000, (8, 4)),
        (sides_of(8, 4, 4, coupled=True), 200, (4, 4)),
    ],
)
def test_what_does_not_fit_shrinks(sides, needed, expected):
    assert memory.smaller(sides, 8, needed, 100) == expected


def test_what_cannot_shrink_is_an_error():
    sides = sides_of(1, 3, 1)
    with pytest.raises(MemoryError, match="3 restarts needs 2.0 GiB.* 1.0 GiB may be"):
        memory.smaller(sides, 1, 2 * 2**30, 2**30)


def test_shrinking_ends():
    width, at_once = 64, 64
    for _ in range(20):
        smaller = memory.smaller(sides_of(width, 1, at_once), width, 1.01, 1)
        width, at_once = smaller
        if (width, at_once) == (1, 1):
            break
    with pytest.raises(MemoryError):
        memory.smaller(sides_of(1, 1, 1), 1, 1.01, 1)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    id: int
    process_index: int
    bytes_limit: int

    def memory_stats(self):
        assert self.process_index == 0, "only a process' own devices can be asked"
        return {"bytes_limit": self.bytes_limit}


def test_the_limit_is_that_of_the_smallest_own_device():
    devices = [Accelerator(0, 0, 100), Accelerator(1, 0, 80), Accelerator(2, 1, 10)]
    assert memory.limit(devices) == pytest.approx(72)


def test_cpus_say_nothing_of_memory():
    assert memory.limit(jax.devices("cpu")) == np.inf
