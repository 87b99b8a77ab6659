"""Labels in closed form: exact identities first, then small networks on photographs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import photos

from invertjax import labels, losses, metrics

_K, _SIDE = photos.CLASSES, photos.SIDE
_SIZES = (_SIDE**2, 64, _K)


def _init(seed):
    """Params of two dense layers, drawn as flax would."""
    rng = np.random.default_rng(seed)

    def layer(inputs, outputs):
        kernel = rng.normal(scale=inputs**-0.5, size=(inputs, outputs))
        return {"kernel": jnp.float32(kernel), "bias": jnp.zeros(outputs)}

    return {"first": layer(*_SIZES[:2]), "head": layer(*_SIZES[1:])}


def _apply(params, image, activation=jax.nn.relu):
    x = (image.reshape(len(image), -1) - 0.5) / 0.25
    x = activation(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None]


_gradient = jax.jit(jax.grad(losses.classification(_apply)))


def _client(params, batch, key):
    del key
    return _gradient(params, batch)


@jax.jit
def _sgd(params, batches, learning_rate):
    def step(params, batch):
        grads = _gradient(params, batch)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, grads), None

    return jax.lax.scan(step, params, batches)[0]


@functools.cache
def _params(trained):
    """Untrained, or after 300 steps of SGD on the public halves."""
    if not trained:
        return _init(0)
    return _sgd(_init(0), photos.batches(photos.public(), 1, 300, 64), 0.05)


@jax.jit
def _bias_gradients(params, batch):
    """Of every image alone, `[B, K]`: a batch's gradient is the mean over its rows."""
    single = jax.tree.map(lambda leaf: leaf[:, None], batch)
    return jax.vmap(lambda one: _gradient(params, one)["head"]["bias"])(single)


_vmapped_counts = jax.jit(jax.vmap(labels.counts, (0, None, None)))
_noise_batches = jax.jit(labels.noise_batches, static_argnums=(1, 2, 3, 4))


@jax.jit
def _probe(key, params, probes):
    return labels.probe(key, _client, params, probes, num_classes=_K)


def _recall(true, counts):
    """Mean recall over rows, after checking that every guess has the right size."""
    true = np.stack([np.bincount(row, minlength=_K) for row in true])
    assert np.all(counts.sum(1) == true.sum(1)) and np.all(counts >= 0)
    return np.mean(np.minimum(true, counts).sum(1) / true.sum(1))


# One image


@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh])
def test_idlg_reads_200_of_200(activation):
    apply = functools.partial(_apply, activation=activation)
    loss_fn = losses.classification(apply)
    singles = photos.batches(photos.private(), 2, 200, 1)
    params = _params(trained=False)

    @jax.jit
    @jax.vmap
    def read(batch):
        head = jax.grad(loss_fn)(params, batch)["head"]
        return labels.idlg(head["kernel"]), labels.idlg(head["kernel"], head["bias"])

    for found in read(singles):
        np.testing.assert_array_equal(found, singles["label"][:, 0])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-6])  # a gradient; FedAvg at a small rate
@pytest.mark.parametrize(
    "probabilities",
    [
        [0.2, 0.2, 0.2, 0.4],
        [0.0001, 0.0009, 0.009, 0.99],
        [1.0, 1e-12, 1e-15, 1e-18],  # sure and wrong
        [1.0, 0.0, 0.0, 1e-7],  # underflown
    ],
)
def test_idlg_on_known_probabilities(probabilities, scale, with_bias):
    features = np.array([0.0, 1.0, 2.0, 0.5, 3.0], np.float32)
    for label in range(1, 4):
        bias = np.float32(scale) * (np.array(probabilities) - np.eye(4)[label])
        weight = np.outer(features, bias.astype(np.float32))
        assert labels.idlg(weight, bias if with_bias else None) == label


def test_idlg_of_features_of_either_sign_needs_three_classes():
    bias = np.array([0.3, 0.2, -0.5])
    for features in (np.array([1.0, -3.0]), np.array([3.0, -1.0])):
        assert labels.idlg(np.outer(features, bias)) == 2
    two = np.outer([1.0, 3.0], [-0.4, 0.4])
    assert labels.idlg(two) == 0  # by the sign of the sum: features >= 0


# Batches: the identity


@pytest.mark.parametrize(
    "truth", [[3, 0, 5, 0], [8, 0, 0, 0], [2, 2, 2, 2], [0, 1, 0, 0]]
)
def test_counts_are_exact_for_known_probabilities(truth):
    truth = np.array(truth)
    mean_p = np.array([0.05, 0.01, 0.84, 0.1], np.float32)
    for scale in (1.0, 0.05):
        update = np.float32(scale) * (mean_p - truth / truth.sum())
        found = labels.counts(update, mean_p, truth.sum(), scale)
        np.testing.assert_array_equal(found, truth)


def test_counts_equal_the_labels_of_a_real_batch():
    params = _params(trained=False)
    batch = photos.batches(photos.private(), 3, 32)
    mean_p = jax.nn.softmax(_apply(params, batch["image"])).mean(0)
    bias_grad = _gradient(params, batch)["head"]["bias"]
    found = labels.counts(bias_grad, mean_p, 32)
    np.testing.assert_array_equal(found, np.bincount(batch["label"], minlength=_K))
    again = labels.mean_probabilities(bias_grad, found)
    np.testing.assert_allclose(again, mean_p, atol=1e-6)  # float32 sums of 32 terms


@pytest.mark.parametrize(
    "estimate, expected",
    [
        ([2.4, 2.4, 3.2], [3, 2, 3]),  # one is missing: largest remainder, first of two
        ([1.4, 0.9, 5.7], [1, 1, 6]),
        ([-2.0, 4.5, 5.5], [0, 4, 4]),  # nearest point without negatives: (0, 3.5, 4.5)
        ([9.0, 0.3, -1.3], [8, 0, 0]),
    ],
)
def test_counts_are_rounded_to_their_sum(estimate, expected):
    found = labels.counts(-np.array(estimate, np.float32) / 8, np.zeros(3), 8)
    np.testing.assert_array_equal(found, expected)


def test_counts_of_anything_are_valid():
    updates = 3 * jax.random.normal(jax.random.key(0), (500, 7))
    sizes = jax.random.randint(jax.random.key(1), (500,), 1, 300)
    counts = jax.vmap(lambda u, b: labels.counts(u, jnp.full(7, 1 / 7), b))
    found = jax.jit(counts)(updates, sizes)
    assert jnp.issubdtype(found.dtype, jnp.integer) and jnp.all(found >= 0)
    np.testing.assert_array_equal(found.sum(1), sizes)


def test_counts_of_updates_of_any_size_are_valid():
    """All images have the label whose share is largest, by far."""
    for scale in (1e9, 1e20, 3e38):
        update = np.float32(scale) * np.array([0.5, 1, -0.5, -1, 0], np.float32)
        found = labels.counts(update, np.full(5, 0.2, np.float32), 8)
        np.testing.assert_array_equal(found, [0, 0, 0, 8, 0])


def test_from_counts_repeats_labels():
    found = labels.from_counts(jnp.array([2, 0, 1, 3]), 6)
    np.testing.assert_array_equal(found, [0, 0, 2, 3, 3, 3])


def test_noise_batches_are_smooth_images_in_the_unit_box():
    probes = _noise_batches(jax.random.key(0), 2, 50, (10, 14, 3), 5)
    image, label = probes["image"], probes["label"]
    assert image.shape == (2, 50, 10, 14, 3) and label.shape == (2, 50)
    assert image.min() >= 0 and image.max() <= 1
    assert abs(image.mean() - 0.5) < 0.02
    # white noise has correlation 0 +- .01; a 1/f spectrum about .7 at this size
    right, left = image[:, :, :, 1:].ravel(), image[:, :, :, :-1].ravel()
    assert jnp.corrcoef(right, left)[0, 1] > 0.5
    np.testing.assert_array_equal(jnp.unique(label), jnp.arange(5))


def test_probe_is_the_mean_probability():
    params = _params(trained=False)
    batches = photos.batches(photos.public(), 4, 3, 20)
    pixels = batches["image"].reshape(60, _SIDE, _SIDE, 1)
    expected = jax.nn.softmax(_apply(params, pixels)).mean(0)
    soft = batches | {"label": jax.nn.one_hot(batches["label"], _K)}
    for probes in (batches, soft):
        found = _probe(jax.random.key(0), params, probes)
        np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 sums


def _skewed_rows(size):
    """20 clients whose classes are Dirichlet(.5): equal counts are a poor guess."""
    rng = np.random.default_rng(7)
    shares = rng.dirichlet(np.full(_K, 0.5), 20)
    classes = np.stack([rng.choice(_K, size, p=share) for share in shares])
    return photos.EACH * classes + rng.integers(0, photos.EACH, classes.shape)


# over three seeds, the worst of sizes 8 to 128 was .956, .908 and .881
@pytest.mark.parametrize(
    "trained, public, least",
    [(False, True, 0.95), (False, False, 0.88), (True, True, 0.85)],
)
def test_counts_of_skewed_clients(trained, public, least):
    params = _params(trained)
    if public:
        probes = photos.batches(photos.public(), 5, 8, 100)
    else:
        shape = (_SIDE, _SIDE, 1)
        probes = _noise_batches(jax.random.key(5), 8, 100, shape, _K)
    mean_p = _probe(jax.random.key(6), params, probes)
    private = photos.private()
    gradients = np.asarray(_bias_gradients(params, private))
    for size in (8, 32, 128):
        rows = _skewed_rows(size)
        true, updates = private["label"][rows], gradients[rows].mean(1)
        recall = _recall(true, np.asarray(_vmapped_counts(updates, mean_p, size)))
        assert recall >= least, size
        blind = _vmapped_counts(0 * updates, np.full(_K, 1 / _K, np.float32), size)
        assert recall > _recall(true, np.asarray(blind)) + 0.3


def _recover(key, params, update, **options):
    probes = photos.batches(photos.public(), 5, 8, 100)
    return labels.recover(
        key,
        _client,
        params,
        update,
        num_classes=_K,
        probe_batches=probes,
        **options,
    )


def test_recover_reads_a_gradient_under_jit():
    params = _params(trained=False)
    batch = photos.batches(photos.private(), 9, 24)
    update = _gradient(params, batch)
    recover = jax.jit(functools.partial(_recover, batch_size=24))
    found = recover(jax.random.key(8), params, update)
    guess = labels.from_counts(found, 24)
    assert metrics.label_recall(batch["label"], guess, _K) >= 0.95


def test_recover_averages_over_local_steps():
    """16 steps of 8 images each: p at the start alone is the worse guess."""
    params = _params(trained=False)
    steps, rate = 16, 0.02
    options = {"batch_size": 8 * steps, "learning_rate": rate}
    whole = jax.jit(functools.partial(_recover, **options, steps=steps))
    start = jax.jit(functools.partial(_recover, **options, steps=1))
    recalls = []
    for seed in range(5):
        batches = photos.batches(photos.private(), 10 + seed, steps, 8)
        after = _sgd(params, batches, rate)
        update = jax.tree.map(lambda p, q: p - q, params, after)
        single = jax.tree.map(lambda leaf: leaf / steps, update)
        true = np.asarray(batches["label"]).reshape(1, -1)
        found = (
            whole(jax.random.key(8), params, update),
            start(jax.random.key(8), params, single),
        )
        recalls.append([_recall(true, np.asarray(counts)[None]) for counts in found])
    averaged, at_start = np.mean(recalls, axis=0)
    assert averaged >= 0.9
    assert averaged > at_start + 0.01


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_recover_is_exact_where_probabilities_move_by_the_same_in_every_step(steps):
    """p_t = p - t d at step t = 0 ... steps - 1, so that their mean is that of the
    first and the last: p - (steps - 1) / 2 d."""
    p = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    d = np.array([2, -2, 1, -1], np.float32) / 32
    truth, rate, kernel = np.array([30, 2, 20, 12]), 0.5, np.zeros((3, 4), np.float32)

    def client(params, batch, key):
        del key
        shares = jnp.bincount(batch["label"], length=4) / len(batch["label"])
        return {"last": {"kernel": kernel, "bias": params["p"] - shares}, "p": p}

    mean_p = p - (steps - 1) / 2 * d
    bias = rate * steps * (mean_p - truth / truth.sum())
    found = labels.recover(
        jax.random.key(0),
        client,
        {"last": {"kernel": kernel, "bias": 0 * p}, "p": p},
        {"last": {"kernel": kernel, "bias": jnp.float32(bias)}, "p": steps * d},
        batch_size=int(truth.sum()),
        num_classes=4,
        probe_batches={"label": jnp.array([[0, 1, 2], [3, 3, 0]])},
        path="last",
        learning_rate=rate,
        steps=steps,
    )
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda head: {"kernel": head["kernel"]}, {}, "path='head', to have a bias"),
        (lambda head: {}, {}, "num_classes=10 to be the outputs"),
        (lambda head: head, {"steps": 0}, "steps=0 >= 1"),
        (lambda head: head, {"path": "first"}, r"num_classes=10.*'first' \(144, 64\)"),
    ],
)
def test_recover_refuses(change, options, message):
    params = _params(trained=False)
    update = params | {"head": change(params["head"])}
    with pytest.raises(ValueError, match=message):
        _recover(jax.random.key(0), params, update, batch_size=8, **options)
