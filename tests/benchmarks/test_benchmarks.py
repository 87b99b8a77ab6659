"""The benchmark's parts, on problems so small that nothing is worth timing."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks import (
    agreement,
    cells,
    engine,
    measure,
    naive,
    plot,
    problem_file,
    problems,
    quality,
    report,
    scaling,
)
from benchmarks.field import Field, gather
from benchmarks.worker import Failed, Worker

TINY = cells.Cell("mlp", batch=2, restarts=2)


@pytest.fixture(scope="module")
def tiny():
    return problems.build(TINY, steps=8)


@pytest.fixture(scope="module")
def runner(tiny):
    return engine.load(tiny)


def write(path, checked):
    objective, gradient, iterates = checked
    np.savez(path, objective=objective, gradient=gradient, iterates=iterates)
    return path


def test_a_problem_survives_its_file(tiny, tmp_path):
    problem_file.save(tmp_path / "p.npz", tiny)
    again = problem_file.load(tmp_path / "p.npz")
    for name, value in tiny._asdict().items():
        found = getattr(again, name)
        if isinstance(value, dict):
            assert list(found) == list(value)
            for leaf in value:
                np.testing.assert_array_equal(found[leaf], value[leaf])
        else:
            np.testing.assert_array_equal(found, value)


def test_starts_lie_inside_the_box(tiny):
    assert 0 <= tiny.starts.min() < tiny.starts.max() <= 1
    assert tiny.starts.shape == (1, 2, *tiny.images.shape[1:])


def test_the_rate_falls_as_the_engines(tiny):
    from invertjax.attacks import inverting_gradients

    schedule = inverting_gradients.__globals__["step_decay"](0.02, 8)
    ours = [problem_file.learning_rate(tiny, step) for step in range(8)]
    np.testing.assert_allclose(ours, [float(schedule(i)) for i in range(8)], rtol=1e-6)


def test_operations_of_an_iteration_are_those_counted_by_hand():
    problem = problems.build(cells.Cell("mlp", batch=64), steps=8)
    # The first layer's product takes 2 * inputs * units operations an image. An
    # iteration has five of them: x W, the weights' gradient, x V along the cotangent V,
    # and two for the pixels' gradient. The second layer is a hundredth of that; the
    # arithmetic on single entries of the update, shared by 64 images, less than one.
    inputs, units = problem.params["layers/0/kernel"].shape
    product = 2 * inputs * units
    flops = engine.load(problem).facts["flops"]
    assert 5 * product < flops < 6 * product


def test_operations_do_not_depend_on_the_restarts(runner):
    alone = engine.load(problems.build(TINY._replace(restarts=1), steps=8))
    # Looping over the trials costs a few copies, no products.
    assert runner.facts["flops"] == pytest.approx(alone.facts["flops"], rel=0.05)


def test_engine_and_naive_agree(tiny, runner, tmp_path):
    ours = write(tmp_path / "ours.npz", runner.check(0.03))
    theirs = write(tmp_path / "theirs.npz", naive.load(tiny).check(0.03))
    found = agreement.compare(ours, theirs)
    assert found.holds, str(found)


def test_another_objective_disagrees(runner, tmp_path):
    ours = write(tmp_path / "ours.npz", runner.check(0.03))
    theirs = write(tmp_path / "theirs.npz", runner.check(0.3))
    assert not agreement.compare(ours, theirs).holds


def test_runs_count_image_iterations(runner):
    seconds, image_iterations = runner.run(3)
    assert seconds > 0
    assert image_iterations == 3 * TINY.images


def test_an_attack_returns_an_image_for_every_target(tiny, runner):
    _, images = runner.attack()
    assert images.shape == tiny.images.shape
    start = tiny.starts[:, 0]
    assert quality.psnr(images, tiny.images) > quality.psnr(start, tiny.images)


def test_workers_answer_and_say_what_is_wrong(tmp_path):
    with Worker("benchmarks.peak", log=tmp_path / "log") as worker:
        assert worker.ask("machine")["devices"] >= 1
        with pytest.raises(Failed, match="KeyError"):
            worker.ask("no such command")


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed here"
)
def test_engine_and_torch_agree(tmp_path):
    field = Field({"engine": sys.executable, "torch": sys.executable}, {}, tmp_path)
    settings = measure.Settings(rounds=1, round_seconds=0.01)
    flat = measure.Bench(field, settings).cell(cells.Cell("lenet"), ("engine", "torch"))
    assert flat["lenet_b1_torch_agree"]
    assert flat["lenet_b1_vs_torch"] > 0


def test_who_is_missing_says_why(tmp_path):
    field = gather(str(tmp_path / "python"), tmp_path)
    assert set(field.pythons) == {"engine", "naive"}
    assert "there is no" in field.missing["torch"]


def test_a_cell_too_long_is_skipped_with_a_reason(tmp_path):
    field = Field({"engine": sys.executable}, {}, tmp_path)
    bench = measure.Bench(field, measure.Settings(limit=60))
    bench.paces["lenet", 32, "engine"] = 1.0
    flat = bench.cell(cells.Cell("lenet", batch=32), ("engine",))
    assert flat == {"lenet_b32_engine_skipped": "a round takes 32.0 s: 192 s in all"}


@pytest.mark.parametrize("cell", [*cells.QUICK, *cells.full(cells.MODELS)])
def test_names_of_cells_are_parsed_back(cell):
    assert cells.parse(cell.name) == cell


def test_names_of_no_cell_are_refused():
    with pytest.raises(ValueError, match="lenet_r8"):
        cells.parse("lenet_r8")


def test_ratios_are_medians_over_rounds():
    rates = {"engine": [10.0, 30.0, 20.0], "torch": [5.0, 5.0, 10.0]}
    flat = measure._summary(cells.Cell("lenet"), rates)
    assert flat["lenet_b1_vs_torch"] == 2.0
    assert flat["lenet_b1_vs_torch_lowest"] == 2.0
    assert flat["lenet_b1_engine_rate"] == 20.0
    assert flat["lenet_b1_engine_spread"] == 1.0


def made_up():
    flat = {"device": "abacus", "matrix_peak_flops_per_second": 1e9}
    for name in ("lenet_b1", "lenet_b1_r8", "convnet5_b1_r8"):
        flat |= {f"{name}_engine_rate": 50.0, f"{name}_engine_spread": 0.1}
        flat |= {f"{name}_engine_flops": 4e6}
    flat |= {"lenet_b1_r8_vs_breaching": 5.0, "convnet5_b1_r8_vs_naive": 7.0}
    return flat | {"cnn_engine_seconds_to_20": 1.5, "lenet_b1_torch_skipped": "lost"}


def test_derived_figures_and_short_names():
    found = report.derived(made_up())
    assert found["lenet_b1_peak_share"] == pytest.approx(0.2)
    assert found["lenet_r8_vs_breaching"] == 5.0
    assert found["convnet5_vs_naive_jax"] == 7.0


def test_the_report_has_every_cell_and_every_reason():
    flat = made_up() | report.derived(made_up())
    text = report.text(flat, ["device"])
    for part in ("abacus", "lenet_b1_r8", "50 ±5%", "20%", "1.50", "lost"):
        assert part in text


def test_curves_are_read_off_flat_keys(tmp_path):
    flat = json.loads(json.dumps(made_up()))
    assert plot.curves(flat)["lenet", "engine"] == [(1, 50.0), (8, 50.0)]
    pytest.importorskip("matplotlib")
    plot.draw(flat, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_seconds_to_quality_take_the_fastest_rung_that_is_there():
    rungs = [
        quality.Rung(50, 1.0, 3.0, 15.0),
        quality.Rung(100, 2.0, 3.0, 21.0),
        quality.Rung(200, 4.0, 3.0, 26.0),
    ]
    assert quality.seconds_to(20, rungs) == (2.0, 5.0)
    assert quality.seconds_to(25, rungs) == (4.0, 7.0)
    assert quality.seconds_to(30, rungs) is None


def test_efficiency_is_the_rate_a_device(monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "_rate", lambda count, *_: {1: 10.0, 2: 15.0}[count])
    flat = scaling.measure((1, 2), Field({}, {}, tmp_path))
    assert flat["scaling_2_efficiency"] == 0.75
