"""Partitions, and the draws from them: laws that hold for every seed."""

import numpy as np
import pytest

from invertjax import federated

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
_PARTITIONS = {
    "iid": lambda seed: federated.iid(LABELS, 12, seed),
    "by_class": lambda seed: federated.by_class(LABELS, 12, 2, seed),
    "dirichlet": lambda seed: federated.dirichlet(LABELS, 12, 0.3, seed),
}


def _same(one, two):
    return all(map(np.array_equal, one, two))


def _counts(partition, labels):
    """`[clients, classes]`: how many of each class a client has."""
    classes = max(labels) + 1
    return np.array([np.bincount(labels[r], minlength=classes) for r in partition])


@pytest.mark.parametrize("name", _PARTITIONS)
def test_every_example_is_held_once_and_the_seed_decides_by_whom(name):
    partition = _PARTITIONS[name](3)
    assert len(partition) == 12
    together = np.sort(np.concatenate(partition))
    np.testing.assert_array_equal(together, np.arange(len(LABELS)))
    assert all(np.issubdtype(rows.dtype, np.integer) for rows in partition)
    assert _same(partition, _PARTITIONS[name](3))
    assert not _same(partition, _PARTITIONS[name](4))


@pytest.mark.parametrize("clients", [1, 7, 600, 601])
def test_iid_sizes_differ_by_at_most_one(clients):
    sizes = [len(rows) for rows in federated.iid(LABELS, clients, 0)]
    assert max(sizes) - min(sizes) <= 1
    assert (min(sizes) == 0) == (clients > len(LABELS))


def test_iid_shares_do_not_follow_the_labels():
    labels = np.sort(LABELS)
    counts = _counts(federated.iid(labels, 4, 0), labels)
    # hypergeometric: 15 +- 2.9 of each class a client; in order, classes 60 or 0
    assert counts.min() > 2 and counts.max() < 28


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_by_class_gives_few_classes(shards):
    """Ten clients: shards of 60, 30 and 12 divide classes of 60."""
    counts = _counts(federated.by_class(LABELS, 10, shards, 0), LABELS)
    assert np.all(counts.sum(1) == 60)
    assert np.all((counts > 0).sum(1) <= shards)


def test_by_class_cuts_borders_once():
    """Each border between classes adds one class to one shard at most."""
    labels = np.repeat(np.arange(5), [3, 50, 17, 20, 11])
    counts = _counts(federated.by_class(labels, 7, 2, 0), labels)
    assert (counts > 0).sum() <= 7 * 2 + 4
    sizes = counts.sum(1)
    assert sizes.max() - sizes.min() <= 2  # two shards, each one more or not


@pytest.mark.parametrize("concentration", [0.1, 1.0, 100.0])
def test_dirichlet_shares_have_their_variance(concentration):
    """Of a share p ~ Dir(a) of k clients: (1/k) (1 - 1/k) / (k a + 1)."""
    labels = np.repeat(np.arange(400), 1000)
    partition = federated.dirichlet(labels, 4, concentration, 0)
    shares = _counts(partition, labels) / 1000
    np.testing.assert_allclose(shares.sum(0), 1)
    expected = 0.25 * 0.75 / (4 * concentration + 1)
    # 1600 shares, 400 of them independent draws of three: within a quarter
    assert shares.var() == pytest.approx(expected, rel=0.25)


def test_dirichlet_may_leave_clients_without_data_and_least_forbids_it():
    def smallest(seed, least):
        partition = federated.dirichlet(LABELS[:60], 12, 0.1, seed, least)
        np.testing.assert_array_equal(np.sort(np.concatenate(partition)), range(60))
        return min(map(len, partition))

    assert min(smallest(seed, 0) for seed in range(20)) == 0
    assert min(smallest(seed, 2) for seed in range(20)) == 2


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: federated.iid(LABELS, 0, 0), "clients=0 >= 1"),
        (lambda: federated.iid(LABELS[None], 2, 0), r"shape \(1, 600\) to be \[n\]"),
        (lambda: federated.iid([], 2, 0), r"shape \(0,\) to be \[n\], n >= 1"),
        (lambda: federated.by_class(LABELS, 2, 0, 0), "classes_per_client=0 >= 1"),
        (lambda: federated.dirichlet(LABELS, 2, 0.0, 0), "concentration=0.0 > 0"),
        (lambda: federated.dirichlet(LABELS, 2, np.nan, 0), "concentration=nan > 0"),
        (lambda: federated.dirichlet(LABELS, 12, 1, 0, 51), "least=51 .* at most 50"),
        (lambda: federated.dirichlet(LABELS, 12, 1e-3, 0, 50), "1000 draws"),
    ],
)
def test_partitions_name_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# Sampling

PARTITION = [np.arange(0, 20), np.arange(0), np.arange(20, 23), np.arange(23, 40)]
SIZES = [20, 0, 3, 17]


def test_clients_are_distinct_and_have_data():
    drawn = [federated.clients_of(r, SIZES, 2, seed=0) for r in range(1500)]
    assert all(len(set(ids)) == 2 for ids in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=4)
    # each of three in 2/3 of the rounds: 1000 +- 18
    assert counts[1] == 0
    np.testing.assert_allclose(counts[[0, 2, 3]], 1000, atol=75)
    firsts = np.bincount([ids[0] for ids in drawn], minlength=4)  # in random order
    np.testing.assert_allclose(firsts[[0, 2, 3]], 500, atol=75)


def test_every_step_draws_without_replacement_and_anew():
    drawn = np.stack(
        [federated.rows_of(r, PARTITION, [0, 3], 2, 8, seed=0) for r in range(500)]
    ).reshape(500, 2, 2, 8)
    for client, rows in ((0, PARTITION[0]), (1, PARTITION[3])):
        steps = drawn[:, client].reshape(-1, 8)
        assert np.all(np.isin(steps, rows))
        assert all(len(set(step)) == 8 for step in steps)
        counts = np.bincount(steps.ravel(), minlength=40)[rows]
        expected = 8000 / len(rows)  # binomial; within five deviations
        np.testing.assert_allclose(counts, expected, atol=5 * expected**0.5)
    # independent steps overlap in 8 * 8 / 20 = 3.2 +- .06 rows; epochs would in none
    overlap = [len(set(a) & set(b)) for a, b in drawn[:, 0]]
    assert np.mean(overlap) == pytest.approx(3.2, abs=0.3)


def test_a_small_client_takes_all_it_has_in_cyclic_order():
    rows = federated.rows_of(0, PARTITION, [2], 3, 8, seed=0).reshape(3, 8)
    for step in rows:
        assert set(step) == {20, 21, 22}
        np.testing.assert_array_equal(step[3:], step[:-3])


def test_draws_depend_on_seed_round_and_client_alone():
    def draw(round=5, ids=(0, 3), seed=1):
        return federated.rows_of(round, PARTITION, ids, 2, 8, seed)

    np.testing.assert_array_equal(draw(), draw())
    np.testing.assert_array_equal(
        draw()[1], draw(ids=[3])[0]
    )  # whoever else takes part
    for other in (draw(round=6), draw(seed=2)):
        assert not np.array_equal(draw(), other)
    sizes = np.ones(100)
    one = federated.clients_of(5, sizes, 50, 1)
    np.testing.assert_array_equal(one, federated.clients_of(5, sizes, 50, 1))
    assert not np.array_equal(one, federated.clients_of(6, sizes, 50, 1))
    assert not np.array_equal(one, federated.clients_of(5, sizes, 50, 2))


def test_a_plan_is_its_rounds():
    def plan(rounds):
        return federated.plan(rounds, PARTITION, count=2, steps=3, batch_size=4, seed=0)

    whole = plan(range(5))
    assert [a.shape for a in whole] == [(5, 2), (5, 2, 12), (5, 2)]
    np.testing.assert_array_equal(whole.weights, np.array(SIZES)[whole.ids])
    rows = federated.rows_of(3, PARTITION, whole.ids[3], 3, 4, seed=0)
    np.testing.assert_array_equal(whole.rows[3], rows)
    for name, resumed in plan(range(2, 5))._asdict().items():
        np.testing.assert_array_equal(getattr(whole, name)[2:], resumed)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: federated.clients_of(0, SIZES, 4, 0), "count=4 .* at most 3"),
        (lambda: federated.clients_of(0, SIZES, 0, 0), "count=0 >= 1"),
        (
            lambda: federated.rows_of(0, PARTITION, [1], 1, 1, 0),
            "client 1 .* have data",
        ),
        (lambda: federated.rows_of(0, PARTITION, [0], 0, 1, 0), "steps=0"),
        (lambda: federated.rows_of(0, PARTITION, [0], 1, 0, 0), "batch_size=0"),
    ],
)
def test_samples_name_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()
