"""What a sweep will cost: counted from the traced program, for any model."""

import time

import jax
import jax.numpy as jnp
import pytest
from support import cli, federations, sweeps

import models
from experiments.audit import cost
from experiments.settings import federation
from experiments.sweep import programs
from invertjax import clients, distances, losses

SIDE, PIXELS = 16, 16 * 16 * 3
added = sweeps.added_model  # a fixture


@pytest.fixture(autouse=True)
def counted_anew():
    cost.count.cache_clear()
    yield
    cost.count.cache_clear()


def seconds(speed=1e9, **settings):
    """Of a cell, without what every target takes beside its attack."""
    cell = cli.resolved(**{"attack": "inverting_gradients", **settings})
    return cost.one(cell, speed).running - cost.OVERHEAD * cell.data.targets


@pytest.mark.parametrize("width", [64, 512])
def test_a_dense_network_has_its_closed_form(width):
    """A layer of n inputs and m outputs costs 2 n m in every pass through it.

    The client's gradient takes three passes (forward; back to the weights and to the
    inputs), its derivative along a direction four (forward and back to the inputs, with
    the weights and with their direction). At the first layer the client needs no
    gradient of the images, nor do these have a direction: there are five passes. 5%:
    activations and biases.
    """
    found = cost.count("mlp", SIDE, width=width)
    dense = 5 * 2 * PIXELS * width + 7 * 2 * width * cost.CLASSES
    assert found.image == pytest.approx(dense, rel=0.05)
    assert found.params == PIXELS * width + width + width * 10 + 10


def test_comparing_updates_costs_as_much_for_every_coordinate():
    """At least three inner products of two updates, each 2 operations."""
    small, large = (cost.count("mlp", SIDE, width=width) for width in (8, 800))
    each = small.update / small.params
    assert 6 <= each < 60 and large.update == pytest.approx(each * large.params, 0.01)


@pytest.mark.parametrize("name, options", [("mlp", {}), ("lenet", {"width": 4})])
def test_the_count_is_that_of_an_iteration_of_any_batch(name, options):
    """3%: what is done once a batch, such as a mean."""
    batch_size = 6
    net = models.build(
        name, image_shape=(SIDE, SIDE, 3), num_classes=cost.CLASSES, **options
    )
    params, _ = jax.eval_shape(net.init, jax.random.key(0))
    client = clients.gradient(
        losses.classification(lambda params, x: net.apply(params, {}, x, True)[0]),
        matrix_products=False,
    )

    @jax.jit
    def iteration(images, labels, params, update):
        def objective(images):
            batch = {"image": images, "label": labels}
            return distances.cosine(client(params, batch, jax.random.key(0)), update)

        return jax.value_and_grad(objective)(images)

    images = jax.ShapeDtypeStruct((batch_size, SIDE, SIDE, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    expected = iteration.lower(images, labels, params, params).cost_analysis()["flops"]
    found = cost.count(name, SIDE, **options)
    assert batch_size * found.image + found.update == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", models.NAMES)
def test_no_model_is_left_out(name):
    """And none takes long to count; processor time, as others may be at work."""
    begin = time.thread_time()
    found = cost.count(name, 32)
    assert time.thread_time() - begin < 8
    # A weight takes part in five passes or more; 9 of 10: biases and norms do not.
    assert found.image > 9 * found.params and found.params > 1000


def test_a_model_that_is_added_needs_nothing_here(added, tmp_path, capsys):
    grid = sweeps.write(tmp_path, f'model = "{added}"\nwidth = [9, 90]')
    assert sweeps.run(grid, f"--workdir={tmp_path / 'run'}", "--dry_run") == 0
    assert "2 cells; 4 targets" in capsys.readouterr().out
    counts = [cost.count(added, 8, width=width) for width in (9, 18, 36)]
    for narrow, wide in zip(counts, counts[1:], strict=False):
        assert narrow.image * 1.8 < wide.image < narrow.image * 2.2
        assert narrow.update * 1.8 < wide.update < narrow.update * 2.2
    assert cost.count(added, 8) == cost.count(added, 8, width=24)  # its default


def test_a_model_is_counted_once_for_all_cells(monkeypatch):
    calls, build = [], models.build
    counting = lambda *args, **options: calls.append(args) or build(*args, **options)  # noqa: E731
    monkeypatch.setattr(models, "build", counting)
    settings = dict(attack="inverting_gradients", model="mlp")
    cells = [
        cli.resolved(**settings, seed=seed, batch_size=size, image_size=side)
        for seed in range(3)
        for size in (1, 4)
        for side in (8, 12)
    ]
    cost.of(group.cells for group in programs.group(cells))
    assert len(calls) == 2  # a side each


def test_time_grows_with_all_that_is_to_do():
    settings = dict(model="mlp", image_size=SIDE, steps=1000, targets=2)
    plain = seconds(**settings)
    counted = cost.count("mlp", SIDE, activation=None, norm=None, width=None)
    assert plain == pytest.approx(2 * 1000 * (counted.image + counted.update) / 1e9)
    for twice in ({"targets": 4}, {"steps": 2000}, {"restarts": 2}):
        assert seconds(**{**settings, **twice}) == pytest.approx(2 * plain)
    images = 2 * 1000 * counted.image / 1e9  # for one more image in every batch
    for more, added in (
        ({"batch_size": 4}, 3),
        ({"batch_size": 4, "local_steps": 3}, 11),
        ({"batch_size": 4, "local_steps": 3, "local_batch": 2}, 5),
    ):
        found = seconds(**settings, **more)
        assert found == pytest.approx(plain + added * images), more
    trained = seconds(**settings, train_steps=7)
    passes = 7 * 64 * 3 / 7 * counted.image / 1e9  # 3 of the 7 passes, a step of 64
    assert trained == pytest.approx(plain + passes)


@pytest.mark.parametrize(
    "attack, warm, iterations",
    [
        ("inverting_gradients", None, 40),
        ("gauss_newton", None, 40 * 300),
        # the recursion once, or the steps that inverting_gradients takes by itself
        ("gauss_newton", "recursive", 40 * 300 + 60 * 300),
        ("gauss_newton", "inverting_gradients", 40 * 300 + 2000),
    ],
)
def test_an_attack_costs_what_its_row_says(attack, warm, iterations):
    settings = dict(attack=attack, model="mlp", image_size=SIDE, steps=40, targets=1)
    counted = cost.count("mlp", SIDE, activation=None, norm=None, width=None)
    expected = iterations * (counted.image + counted.update) / 1e9
    assert seconds(**settings, warm_start=warm) == pytest.approx(expected)


def test_what_cannot_be_built_costs_nothing():
    assert cost.count("convnet", 1) == (0, 0, 0, 0)


def test_a_federation_costs_its_rounds_and_its_audits():
    given = dict(attack="inverting_gradients", model="mlp", image_size=SIDE, steps=10)
    plan = federation.resolve({"rounds": 7, "participants": 3})  # audits at 0 and 7
    local = dict(local_epochs=2, batch_size=4, local_batch=2)
    topics = federation.of_clients({**given, **local}, plan)
    counted = cost.count("mlp", SIDE, activation=None, norm=None, width=None)
    seen = 2 * 4  # images, each twice
    trained = 7 * 3 * seen * 3 / 7 * counted.image / 1e9
    audits = 2 * (3 + 1) * 10 * (seen * counted.image + counted.update) / 1e9
    found = cost.of_federation(topics, plan, 1e9)
    of_targets = 2 * 3 * cost.OVERHEAD
    assert found.running == pytest.approx(trained + audits + of_targets)
    none = federation.resolve({"rounds": 7, "participants": 3, "audit_rounds": ()})
    assert cost.of_federation(topics, none, 1e9).running == pytest.approx(trained)


def test_short_runs_are_not_worth_a_line():
    settings = dict(attack="inverting_gradients", model="mlp", image_size=SIDE)
    assert cost.before(cli.resolved(**settings, steps=2, targets=1)) is None
    assert cost.before(cli.resolved(**settings, steps=20_000)).running > 0
    assert cost.whole(cli.resolved(**settings, steps=2)).running > 0


def test_a_run_counts_its_null_control():
    settings = dict(attack="inverting_gradients", model="mlp", targets=3)
    with_control, without = (
        cost.one(cli.resolved(**settings, null_control=asked), 1e9, alone=True).running
        for asked in (True, False)
    )
    rest = 3 * cost.OVERHEAD
    assert (with_control - rest) / (without - rest) == pytest.approx(4 / 3)


@pytest.mark.parametrize("command", ["reconstruct", "federate"])
def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(
    command, tmp_path, capsys
):
    run = {"reconstruct": cli.run, "federate": federations.run}[command]
    out = tmp_path / "run"
    assert run("--dry_run", "--model=mlp", f"--workdir={out}") == 0
    line = capsys.readouterr().out
    assert line.startswith("Estimate: about ") and line.count("\n") == 1
    assert not out.exists()
