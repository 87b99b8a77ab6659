"""The command line from end to end, on small victims and few steps."""

import itertools
import json
import math
import os
import signal
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image
from support import cli, processes

import models
from experiments import data
from experiments.settings.settings import RULES
from invertjax import metrics
from invertjax.auditing import clients, controls, scores, situations
from invertjax.auditing import programs as audited
from invertjax.cli import arrays as updates
from invertjax.driver import programs

# On 8x8 crops, nine units: each run compiles for seconds and computes for none.
SMALL = ("--model=mlp", "--width=9", "--image_size=8")
MATCHING = ("--attack=inverting_gradients", "--steps=3", *SMALL, "--targets=2")
SHAPE = (8, 8, 3)
KNOWN = "--defense_known"
HOUR = 3600.0

cheap_compilation, start = cli.cheap_compilation, processes.start  # fixtures


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A finished run: two targets of two images, noise on the update."""
    out = tmp_path_factory.mktemp("runs") / "noisy"
    args = (*MATCHING, "--batch_size=2", "--defense=gaussian:0.01")
    with pytest.MonkeyPatch.context() as patched:
        hours = types.SimpleNamespace(perf_counter=itertools.count(0, HOUR).__next__)
        patched.setattr(programs, "time", hours)  # the clock of compiling
        assert cli.run(*args, f"--workdir={out}") == 0
    return args, out


def _nulls(out):
    summary = cli.summary(out)
    names = [name for name in summary if name.startswith("null_")]
    return {name.removeprefix("null_"): summary[name] for name in names}


def _strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_it_writes_what_it_says(noisy):
    _, out = noisy
    assert {file.name for file in out.iterdir()} == cli.FILES
    for line in (out / "metrics.jsonl").read_text().splitlines():
        _strict(line)
    for name in ("config.json", "summary.json"):
        _strict((out / name).read_text())
    with Image.open(out / "grid.png") as picture:
        assert picture.width > 100 and picture.height > 4 * 96


def test_the_summary(noisy):
    _, out = noisy
    summary, rows = cli.summary(out), cli.rows(out)
    psnr = np.array([np.mean(row["psnr"]) for row in rows])
    assert summary["targets"] == len(rows) == 2
    assert summary["psnr_mean"] == pytest.approx(psnr.mean())
    assert summary["psnr_std"] == pytest.approx(psnr.std())
    assert summary["psnr_min"] == pytest.approx(psnr.min())
    ssim = np.mean([row["ssim"] for row in rows])
    assert summary["ssim_mean"] == pytest.approx(ssim)
    assert summary["label_recall"] == 1.0 and summary["failed"] == 0
    assert summary["seconds_compile"] == HOUR > summary["seconds_run"] > 0
    assert summary["interrupted"] is False and isinstance(summary["verdict"], str)
    assert summary["threat_model"]["defense"] == ["gaussian:0.01"]
    assert _nulls(out).keys() == {"mean_image", "random_image", "shuffled_update"}
    rms = np.mean([row["update_rms"] for row in rows])
    ratio = summary["defense_to_rms"]["gaussian:0.01"]
    assert ratio == pytest.approx(0.01 / rms)


def test_the_rows_have_a_number_for_every_image(noisy):
    for i, row in enumerate(cli.rows(noisy[1])):
        assert row["target"] == i and row["steps"] == 3 and row["stopped"] == "budget"
        for name in ("psnr", "ssim", "mse", "labels", "labels_true"):
            assert len(row[name]) == 2
        assert sorted(row["labels"]) == sorted(row["labels_true"])


def test_the_arrays_are_those_that_were_scored(noisy):
    _, out = noisy
    arrays = cli.arrays(out)
    assert arrays["image"].min() >= 0 and arrays["image"].max() <= 1
    for i, row in enumerate(cli.rows(out)):
        mse = np.mean((arrays["image"][i] - arrays["original"][i]) ** 2, (1, 2, 3))
        np.testing.assert_allclose(row["psnr"], -10 * np.log10(mse), rtol=1e-4)


def test_target_i_is_the_ith_batch_of_the_split(noisy):
    held = data.load("photos", "test", image_size=8, limit=4)
    found = cli.arrays(noisy[1])
    np.testing.assert_array_equal(found["original"].reshape(4, *SHAPE), held.images)
    true = [row["labels_true"] for row in cli.rows(noisy[1])]
    assert np.ravel(true).tolist() == held.labels.tolist()


def test_the_config_repeats_the_run(noisy, tmp_path):
    _, out = noisy
    kept = json.loads((out / "config.json").read_text())
    assert kept["versions"]["jax"] == jax.__version__ and "cpu" in kept["device"]
    again = tmp_path / "again"
    assert cli.run(*cli.flags(kept["settings"]), f"--workdir={again}") == 0
    assert cli.rows(again) == cli.rows(out)
    for name, values in cli.arrays(out).items():
        np.testing.assert_array_equal(cli.arrays(again)[name], values)


def _interrupt_after(monkeypatch, module, name):
    """Ctrl-C right after the first call of a function."""
    original, calls = getattr(module, name), []

    def then_interrupt(*args, **options):
        value = original(*args, **options)
        calls.append(name)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return value

    monkeypatch.setattr(module, name, then_interrupt)


def test_an_interrupted_run_is_readable_and_resumes(
    noisy, monkeypatch, tmp_path, capsys
):
    args, whole = noisy
    out = tmp_path / "run"
    args = (*args, f"--workdir={out}")
    with monkeypatch.context() as patch:
        _interrupt_after(patch, scores, "scored")  # the first of two targets is done
        assert cli.run(*args) == 130
    assert "--resume" in capsys.readouterr().err
    assert {file.name for file in out.iterdir()} == cli.FILES
    assert [row["stopped"] for row in cli.rows(out)] == ["budget", "interrupted"]
    assert cli.arrays(out)["image"].shape == (2, 2, *SHAPE)
    assert cli.summary(out)["interrupted"] is True
    assert "shuffled_update" not in _nulls(out)

    other = [arg for arg in args if not arg.startswith("--steps")]
    line = cli.refused(capsys, out, *other, "--steps=4", "--resume")
    assert "--steps=3" in line and "4" in line
    assert "--resume" in cli.refused(capsys, out, *args)

    with monkeypatch.context() as patch:
        _interrupt_after(
            patch, controls, "shuffled"
        )  # all targets done, no control yet
        assert cli.run(*args, "--resume") == 130
    assert cli.rows(out) == cli.rows(whole)
    assert cli.run(*args, "--resume") == 0
    assert cli.rows(out) == cli.rows(whole)
    assert _nulls(out) == _nulls(whole)
    np.testing.assert_array_equal(cli.arrays(out)["image"], cli.arrays(whole)["image"])

    capsys.readouterr()
    assert cli.run(*args, "--resume") == 0
    assert "All 2 targets are done" in capsys.readouterr().out


RECONSTRUCT = "experiments.reconstruct"


def test_ctrl_c_in_a_terminal(start, tmp_path):
    """After the first chunk, of one step."""
    out = tmp_path / "run"
    args = (*MATCHING, "--steps=100000", "--nonull_control", f"--workdir={out}")
    flush = "invertjax.cli.recorder:Recorder.flush_in_time"
    interrupted = processes.signalled("SIGINT", flush, out / "config.json")
    process = start(*interrupted, RECONSTRUCT, *args)
    ((code, _, said),) = processes.ended(process)
    assert code == 130 and said.count("\n") == 1 and "--resume" in said
    assert {file.name for file in out.iterdir()} == cli.FILES
    (row,) = cli.rows(out)
    assert row["stopped"] == "interrupted" and 0 < row["steps"] < 100_000
    assert cli.arrays(out)["image"].shape == (1, 1, *SHAPE)


def test_bad_input_in_a_terminal(start, tmp_path):
    args = ("--attack=analytical", f"--workdir={tmp_path / 'run'}")
    ((code, out, said),) = processes.ended(start("-m", RECONSTRUCT, *args))
    assert code == 2 and out == "" and not (tmp_path / "run").exists()
    assert said.startswith("error: --attack=analytical") and said.count("\n") == 1


def test_help_in_a_terminal(start):
    ((code, out, said),) = processes.ended(start("-m", RECONSTRUCT, "--helpshort"))
    assert code == 0 and said == ""
    assert out.startswith("Reconstructs batches from shared updates")
    for name in RULES:
        assert f"--{name}:" in out or f"--[no]{name}:" in out


def test_auto_reads_one_image_of_a_dense_network_exactly(tmp_path):
    out = tmp_path / "run"
    assert cli.run(*SMALL, "--targets=1", "--nonull_control", f"--workdir={out}") == 0
    summary = cli.summary(out)
    assert summary["attack"] == summary["threat_model"]["attack"] == "peeling"
    assert summary["certified_share"] == summary["recovered_share"] == 1
    assert summary["false_certificates"] == 0
    assert 120 < summary["psnr_min"] <= 160
    assert _nulls(out).keys() == {"mean_image", "random_image"}
    assert [row["certified"] for row in cli.rows(out)] == [[True]]


def test_a_batch_comes_apart_without_its_labels(tmp_path):
    """Also of a network that sees pixels as they are."""
    out = tmp_path / "run"
    flags = ("--attack=peeling", "--batch_size=3", "--normalise=none", "--targets=2")
    assert cli.run(*SMALL, *flags, f"--workdir={out}") == 0
    summary, rows = cli.summary(out), cli.rows(out)
    assert summary["threat_model"]["labels"] == "joint"
    certified = np.array([row["certified"] for row in rows])
    exact = np.array([row["psnr"] for row in rows]) >= 40
    assert certified.shape == (2, 3) and certified.any()
    assert summary["certified_share"] == pytest.approx(certified.mean())
    assert summary["recovered_share"] == pytest.approx(exact.mean())
    assert summary["false_certificates"] == 0 == (certified & ~exact).sum()
    for row in rows:
        for true, found, sure in zip(
            row["labels_true"], row["labels"], row["certified"], strict=True
        ):
            assert true == found or not sure


def test_where_nothing_is_seen_of_pixels_nothing_is_certified(tmp_path):
    out = tmp_path / "run"
    flags = ("--attack=peeling", "--model=cnn", "--hidden=16", "--targets=1")
    assert cli.run(*SMALL, *flags, "--nonull_control", f"--workdir={out}") == 0
    assert cli.summary(out)["certified_share"] == 0
    assert cli.rows(out)[0]["labels"] is not None


# Without attacking: what the client shares and what the attacker starts from.


def _situation(*args):
    return cli.ready(*args).prepared.situation


def _distance_at_the_truth(stage):
    """Of the simulated from the observed update, relative, where the guess is right."""
    shared, trial = stage.shared, jax.tree.map(lambda leaf: leaf[0], stage.trials)
    batch = jax.tree.map(lambda leaf: leaf[0], stage.truth)
    params = trial.get("params", shared.get("params"))
    target = situations.with_numbers(stage.target, trial["numbers"]["target"])
    share = jax.jit(clients.simulated(target, knows=stage.threat.protection_known))
    guess = updates.flat(share(params, batch, jax.random.key(0)))
    observed = updates.flat(trial["update"])
    misses = [np.linalg.norm(guess[key] - observed[key]) for key in guess]
    return max(misses) / max(np.linalg.norm(leaf) for leaf in observed.values())


LOCAL = (*SMALL, "--attack=inverting_gradients", "--targets=1", "--batch_size=4")
LOCAL += ("--local_steps=3", "--local_batch=2", "--local_lr=0.5")


@pytest.mark.parametrize(
    "args, exact",
    [
        (LOCAL[:5], True),
        (LOCAL, True),
        ((*LOCAL, "--nolocal_known"), False),
        ((*LOCAL, "--local_shuffle"), False),
    ],
)
def test_who_knows_the_local_steps_simulates_them(args, exact):
    """1e-5: both are float32, compiled alike."""
    miss = _distance_at_the_truth(_situation(*args))
    assert miss < 1e-5 if exact else miss > 1e-2


def test_networks_are_seeded_target_by_target():
    stages = [
        _situation(*SMALL, "--targets=3", "--seed=5"),
        _situation(*SMALL, "--targets=3", "--seed=5", "--networks=shared"),
    ]
    net = models.build("mlp", image_shape=SHAPE, num_classes=8, width=9)
    key = jax.random.key(5)
    for i in range(3):
        params = net.init(jax.random.fold_in(key, i))[0]
        row = jax.tree.map(lambda leaf, i=i: leaf[i], stages[0].trials["params"])
        jax.tree.map(_allclose, row, params)
    assert "params" not in stages[1].trials
    jax.tree.map(_allclose, stages[1].shared["params"], net.init(key)[0])
    other = jax.tree.map(lambda leaf: leaf[0], stages[0].trials["params"])
    assert np.abs(row["layers"][0]["kernel"] - other["layers"][0]["kernel"]).max() > 0.1


def _allclose(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5)  # compiled with and without jit


@pytest.mark.parametrize("labels", ["known", "inferred", "joint"])
def test_how_the_attacker_comes_by_the_labels(labels):
    """An untrained network on four classes: counting them needs no luck."""
    args = (*SMALL, "--attack=inverting_gradients", "--batch_size=4", "--targets=2")
    stage = _situation(*args, f"--labels={labels}")
    truth = stage.truth["label"]
    if labels == "joint":
        assert "label" not in stage.trials
        return
    found = stage.trials["label"]
    assert found.shape == truth.shape
    if labels == "known":
        np.testing.assert_array_equal(found, truth)
    else:
        recall = [
            metrics.label_recall(t, f, 8) for t, f in zip(truth, found, strict=True)
        ]
        assert np.mean(recall) >= 0.75


def _shared(*defenses):
    args = (*SMALL, "--targets=2", "--networks=shared", "--attack=inverting_gradients")
    stage = _situation(*args, *(f"--defense={text}" for text in defenses))
    return {key: leaf for key, leaf in updates.flat(stage.trials["update"]).items()}


def _norm(update, i):
    return math.sqrt(sum(np.sum(leaf[i] ** 2) for leaf in update.values()))


def test_defenses_do_what_they_say():
    raw = _shared()
    kernel = "layers/0/kernel"
    pruned = _shared("prune:0.75")[kernel]
    assert np.mean(pruned == 0, (1, 2)) == pytest.approx(0.75, abs=0.01)
    kept = pruned != 0
    # Two programs, and the largest quarter: no entry is small beside its terms.
    np.testing.assert_allclose(pruned[kept], raw[kernel][kept], rtol=1e-4)

    assert set(np.unique(_shared("sign")[kernel])) <= {-1.0, 0.0, 1.0}
    assert len(np.unique(_shared("quantise:3")[kernel][0])) <= 7

    noise = _shared("gaussian:0.1")[kernel] - raw[kernel]
    assert noise.std() == pytest.approx(0.1, rel=0.05)  # of 3456 draws
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1
    laplace = _shared("laplace:0.1")[kernel] - raw[kernel]
    assert np.abs(laplace).mean() == pytest.approx(0.1, rel=0.1)


def test_defenses_apply_in_order():
    bound = _norm(_shared(), 0) / 10
    clipped_last = _shared("gaussian:0.1", f"clip:{bound}")
    assert _norm(clipped_last, 0) == pytest.approx(bound, rel=1e-5)
    clipped_first = _shared(f"clip:{bound}", "gaussian:0.1")
    assert _norm(clipped_first, 0) > 2 * bound


@pytest.mark.parametrize(
    "args, attack",
    [
        ([], "peeling"),
        (["--batch_size=2"], "peeling"),
        (["--batch_size=2", "--activation=tanh"], "inverting_gradients"),
        (["--activation=tanh"], "analytic"),
        (["--defense=gaussian:0.1"], "inverting_gradients"),
        (["--labels=joint"], "peeling"),
        (["--defense=clip:0.1"], "analytic"),
    ],
)
def test_auto_takes_the_closed_form_only_where_there_is_one(args, attack):
    ready = cli.ready(*SMALL, "--targets=2", *args)
    assert ready.prepared.plan.row.name == attack


@pytest.mark.parametrize("attack", ["inverting_gradients", "deep_leakage", "idlg"])
def test_every_attack_can_know_of_defenses(attack):
    args = (*SMALL, f"--attack={attack}", "--steps=2", "--targets=1")
    prepared = cli.ready(*args, "--defense=clip:1", "--defense=prune:0.5", KNOWN)[1]
    stage = prepared.situation
    make = audited.maker(stage, prepared.plan)
    attack = make(stage.shared, jax.tree.map(lambda leaf: leaf[0], stage.trials))
    result = jax.eval_shape(
        lambda key: attack.result(attack.advance(attack.init(key), 1)),
        jax.random.key(0),
    )
    assert attack.steps == 2 and result.batch["image"].shape == (1, *SHAPE)
    expected = (1, 8) if stage.threat.labels == "joint" else (1,)
    assert result.batch["label"].shape == expected


def test_trained_victims_and_their_checkpoints(tmp_path, capsys):
    file = tmp_path / "net.safetensors"
    args = (*SMALL, "--attack=inverting_gradients", "--targets=1", "--steps=1")
    args += ("--train_steps=30", f"--checkpoint={file}")
    trained = cli.ready(*args)
    assert trained.facts["trained_steps"] == 30
    assert trained.facts["train_accuracy"] > 0.2  # of eight classes
    loaded = cli.ready(*args)
    assert loaded.facts == {"checkpoint": str(file)}
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded.prepared.situation.shared["params"],
        jax.device_get(trained.prepared.situation.shared["params"]),
    )
    run = tmp_path / "run"
    assert "30" in cli.refused(capsys, run, *args, "--train_steps=31")
    line = cli.refused(capsys, run, *args, "--width=10")
    assert f"--checkpoint={file}" in line and "(9,)" in line and "(10,)" in line
    line = cli.refused(capsys, run, *args, "--model=lenet")
    assert f"--checkpoint={file}" in line and "--model=lenet" in line


def test_public_images_are_never_targets():
    args = ("--dataset=faces", "--split=train", "--batch_size=20", "--targets=2")
    sources = cli.inputs(*args)
    targets = {image.tobytes() for image in sources.truth["image"].reshape(40, -1)}
    public = {image.tobytes() for image in sources.public.images.reshape(110, -1)}
    assert len(targets) == 40 and not targets & public


# An update from the reader's own code.


@pytest.mark.usefixtures("x64")
def test_an_update_of_a_known_model_gives_its_image_away(tmp_path, capsys):
    """In float64, from the file to the result: float32 would be wrong by 1e-7."""
    image = cli.own_update(tmp_path)
    out = tmp_path / "run"
    args = ("--model=mlp", "--width=9", "--x64", f"--workdir={out}")
    assert cli.run(*cli.own_flags(tmp_path), *args) == 0
    printed = capsys.readouterr()
    assert "PSNR" not in printed.out and "dB" not in printed.out
    assert "Without the truth" in printed.out
    assert {file.name for file in out.iterdir()} == cli.FILES
    assert set(cli.arrays(out)) == {"image", "label", "target"}
    assert cli.arrays(out)["image"].dtype == np.float64
    np.testing.assert_allclose(cli.arrays(out)["image"][0], image, rtol=0, atol=1e-12)
    (row,) = cli.rows(out)
    assert row["labels"] == [7] and "psnr" not in row and row["fit"] < 1e-6
    summary = cli.summary(out)
    assert summary["psnr_mean"] is None and "not given" in summary["truth"]
    assert summary["threat_model"]["labels"] == "inferred"


@pytest.fixture
def own_loss(tmp_path, monkeypatch):
    """Flags of an update whose params are a list of pairs."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_loss", raising=False)
    return cli.own_loss(tmp_path)


def test_an_update_of_the_readers_own_loss(own_loss, tmp_path):
    out = tmp_path / "run"
    args = (*own_loss, "--loss=own_loss:loss", "--local_steps=2", "--local_lr=0.1")
    args += ("--defense=prune:0.5", "--defense_known", f"--workdir={out}")
    assert cli.run(*args) == 0
    assert cli.arrays(out)["image"].shape == (1, 1, *SHAPE)
    assert cli.rows(out)[0]["labels"][0] in range(4)
    threats = cli.summary(out)["threat_model"]
    assert threats["labels"] == "joint" and "FedAvg" in threats["update"]
    assert threats["defense_adaptive"].startswith("yes")


def test_a_run_without_a_finite_trial_says_so(own_loss, tmp_path, capsys):
    out = tmp_path / "run"
    args = (*own_loss, "--loss=own_loss:not_finite", f"--workdir={out}")
    assert cli.run(*args) == 1
    assert "1 of 1 targets had no trial with a finite" in capsys.readouterr().err
    summary = _strict((out / "summary.json").read_text())
    assert summary["failed"] == 1 and summary["verdict"].startswith("FAILED")
    assert np.all(np.isfinite(cli.arrays(out)["image"]))


def test_damaged_runs_are_not_resumed(noisy, tmp_path, capsys):
    args, whole = noisy
    for name in cli.FILES:
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "config.json").write_text("{")
    line = cli.refused(capsys, tmp_path, *args, "--resume")
    assert f"--workdir={tmp_path}" in line and "--overwrite" in line


@pytest.mark.skipif(
    "TFDS_DATA_DIR" not in os.environ, reason="needs CIFAR-10: TFDS_DATA_DIR is not set"
)
def test_data_sets_of_tfds():
    args = ("--dataset=cifar10", "--model=mlp", "--targets=2", "--batch_size=3")
    sources = cli.inputs(*args)
    held = data.load("cifar10", "test", limit=6)
    images = sources.truth["image"].reshape(held.images.shape)
    np.testing.assert_array_equal(images, held.images)
    assert sources.num_classes == 10 and len(sources.public.images) >= 512


@pytest.mark.parametrize("mode, says", [("train", "of the batch"), ("eval", "running")])
def test_batch_norm_in_both_modes(tmp_path, mode, says):
    out = tmp_path / "run"
    victim = ("--model=lenet", "--norm=batch", "--width=2", "--image_size=8")
    args = ("--attack=inverting_gradients", "--steps=2", "--targets=1", *victim)
    code = cli.run(*args, f"--norm_mode={mode}", "--nonull_control", f"--workdir={out}")
    assert code == 0
    assert says in cli.summary(out)["threat_model"]["batch_norm"]
    assert cli.summary(out)["failed"] == 0
