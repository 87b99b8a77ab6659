"""`--attack=gauss_newton` from end to end, on small victims."""

import sys
from typing import Any

import jax
import numpy as np
import pytest
from support import cli

from invertjax import attacks
from invertjax.auditing import attackers, clients, programs, run, situations
from invertjax.cli import defense_text

SMALL = ("--attack=gauss_newton", "--model=mlp", "--image_size=8", "--nonull_control")
SMOOTH = (*SMALL, "--activation=tanh", "--width=24", "--targets=1")
RELU = (*SMALL, "--width=24", "--targets=1")
LOCAL = ("--local_steps=2", "--batch_size=2", "--local_batch=1", "--local_lr=0.1")

cheap_compilation = cli.cheap_compilation  # a fixture


def _attacked(out, *args):
    assert cli.run(*args, f"--workdir={out}") == 0
    return cli.summary(out)


@pytest.mark.slow
def test_a_smooth_network_gives_its_image_away(tmp_path):
    summary = _attacked(tmp_path / "run", *SMOOTH)
    assert summary["psnr_min"] > 60
    assert summary["threat_model"]["attack"] == "gauss_newton"
    (row,) = cli.rows(tmp_path / "run")
    assert 0 < row["steps"] <= 50


@pytest.mark.slow
def test_local_steps_and_a_known_pruning_do_not_hide_it(tmp_path):
    args = (*SMOOTH, *LOCAL, "--defense=prune:0.5", "--defense_known")
    summary = _attacked(tmp_path / "run", *args)
    assert summary["psnr_min"] > 60
    assert summary["threat_model"]["defense_adaptive"].startswith("yes")


def test_relus_go_through_the_homotopy(tmp_path):
    out = tmp_path / "run"
    summary = _attacked(out, *RELU, "--total_variation=1e-4")
    assert cli.rows(out)[0]["steps"] > 32  # the last of five stages is reached
    assert summary["psnr_min"] > 20


@pytest.fixture
def made(monkeypatch):
    """`args -> (keywords of the library's attack, what it would return)`."""

    def make(*args):
        prepared = cli.ready(*args).prepared
        stage, seen = prepared.situation, {}
        real = attacks.gauss_newton

        def spy(*args, **kwargs):
            seen.update(kwargs)
            return real(*args, **kwargs)

        monkeypatch.setattr(attacks, "gauss_newton", spy)
        make = programs.maker(stage, prepared.plan)
        attack = make(stage.shared, jax.tree.map(lambda leaf: leaf[0], stage.trials))
        monkeypatch.setattr(attacks, "gauss_newton", real)
        first = attack.init(jax.random.key(0))
        shapes = jax.eval_shape(lambda s: attack.result(attack.advance(s, 1)), first)
        return seen, first.z, shapes.batch

    return make


def test_what_the_library_is_given(made):
    smooth, z, _ = made(*SMOOTH)
    assert smooth["softened"] is None and smooth["steps"] == 50
    assert smooth["total_variation"] is None and smooth["noise"] == 0
    assert 0.03 < z["image"].std() < 0.07
    relu, z, _ = made(*RELU, "--total_variation=0.1", "--restarts=2")
    assert relu["softened"] is not None and relu["steps"] == 50
    assert relu["total_variation"] == 0.1 and 0.03 < z["image"].std() < 0.07


def test_noise_that_the_attacker_knows_of(made):
    noise = "--defense=gaussian:0.01"
    assert made(*SMOOTH, noise, "--defense_known")[0]["noise"] == 0.01
    assert made(*SMOOTH, noise)[0]["noise"] == 0


@pytest.mark.parametrize("args", [SMOOTH, RELU])
def test_labels_may_be_optimised_jointly(args, made):
    _, z, batch = made(*args, "--labels=joint")
    assert z["logits"].shape == batch["label"].shape == (1, 8)


@pytest.mark.parametrize("local", [(), LOCAL])
def test_what_is_smoothed_tends_to_the_client(local):
    stage = cli.ready(*RELU, *local).prepared.situation
    trial, batch = jax.tree.map(lambda leaf: leaf[0], (stage.trials, stage.truth))
    target = situations.with_numbers(stage.target, trial["numbers"]["target"])
    params = trial["params"]
    soften = clients.softened(target, knows=False, params=params, batch=batch)
    assert soften is not None

    @jax.jit
    def share(batch, sharpness):
        return soften(target, sharpness)(params, batch, jax.random.key(0))

    def miss(sharpness):
        gaps = jax.tree.map(np.subtract, share(batch, sharpness), trial["update"])
        return max(np.abs(leaf).max() for leaf in jax.tree.leaves(gaps))

    assert miss(8.0) > miss(128.0) > miss(np.inf)
    assert miss(np.inf) < 1e-5  # in float32, compiled otherwise


def test_least_squares_are_smoothed():
    rows = [row.name for row in attackers.ATTACKERS.values() if row.smooths]
    assert rows == ["gauss_newton", "peeling"]


def test_steps_by_default():
    def steps(**given):
        return cli.resolved(attack="gauss_newton", **given).attack.steps

    given: Any = dict(update="u", params="p", batch_size=1, image_shape=(8, 8, 3))
    assert steps() == steps(loss="m:f", num_classes=4, **given) == 50
    assert steps(model="cnn", steps=7) == 7


@pytest.mark.parametrize(
    "args, says",
    [
        (["--attack_lr=0.1"], ["--attack_lr=0.1", "inverting_gradients"]),
        (["--total_variation=-1"], ["--total_variation=-1.0", "0 or more"]),
        (["--steps=0"], ["--steps=0", "1 or more"]),
        (["--attack=gauss_newtn"], ["--attack=gauss_newtn", "'gauss_newton'"]),
        (
            ["--attack=deep_leakage", "--total_variation=1"],
            ["--total_variation=1.0", "inverting_gradients or gauss_newton"],
        ),
    ],
)
def test_bad_flags_are_refused(args, says, tmp_path, capsys):
    line = cli.refused(capsys, tmp_path / "run", *SMOOTH, *args)
    for fragment in says:
        assert fragment in line


def test_noise_is_known_only_where_it_is_alone():
    row = attackers.GAUSS_NEWTON

    def fits(*texts):
        return row.adapts(list(map(defense_text.parse, texts))) is not None

    assert fits("gaussian:0.5")
    assert not fits() and not fits("gaussian:0.5", "sign") and not fits("clip:1")
    noise = (*SMOOTH, "--defense=gaussian:1", "--defense_known")
    for attack, says in (("gauss_newton", "yes"), ("deep_leakage", "no")):
        prepared = cli.ready(*noise, f"--attack={attack}").prepared
        assert run.threats(prepared)["defense_adaptive"].startswith(says)


@pytest.fixture
def own_loss(tmp_path, monkeypatch):
    """Flags of an update of the reader's own loss; `reverse` has no other mode."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_loss", raising=False)
    args = (*cli.own_loss(tmp_path), "--attack=gauss_newton", "--restarts=1")
    source = tmp_path / "own_loss.py"
    source.write_text(source.read_text() + REVERSE)
    return args


REVERSE = """
@jax.custom_vjp
def same(x):
    return x

same.defvjp(lambda x: (x, None), lambda _, v: (v,))

def reverse(params, batch):
    return loss(params, {**batch, "image": same(batch["image"])})

def rectified(params, batch):
    return jax.nn.relu(loss(params, batch))
"""


@pytest.mark.parametrize("name, found", [("loss", False), ("rectified", True)])
def test_relus_in_the_readers_own_loss_are_found(name, found, own_loss, made):
    given, z, batch = made(*own_loss, f"--loss=own_loss:{name}")
    assert (given["softened"] is not None) == found and given["steps"] == 2
    assert z["image"].shape == batch["image"].shape == (1, 8, 8, 3)


def test_a_loss_without_forward_mode_is_refused(own_loss, tmp_path, capsys):
    line = cli.refused(capsys, tmp_path / "run", *own_loss, "--loss=own_loss:reverse")
    for fragment in ("--attack=gauss_newton", "--loss=own_loss:reverse", "forward"):
        assert fragment in line


def test_a_warm_start_by_the_recursion_leaves_little_to_do(tmp_path):
    args = (*SMOOTH, "--warm_start=recursive")
    summary = _attacked(tmp_path / "run", *args)
    assert summary["psnr_min"] > 60
    assert cli.rows(tmp_path / "run")[0]["steps"] <= 6
    assert summary["threat_model"]["attack"] == "gauss_newton, from recursive"


def test_the_recursion_alone(tmp_path):
    args = ("--attack=recursive", *SMOOTH[1:], "--batch_size=2")
    summary = _attacked(tmp_path / "run", *args)
    assert summary["psnr_min"] > 60


@pytest.mark.parametrize(
    "defense, drawn", [("precode:16", "noise"), ("dropout:0.5", "kept")]
)
def test_networks_without_blocks_are_refused(defense, drawn, tmp_path, capsys):
    args = ("--model=cnn", f"--defense={defense}")
    for attack in (
        ("--attack=recursive",),
        ("--attack=gauss_newton", "--warm_start=recursive"),
    ):
        line = cli.refused(capsys, tmp_path / "run", *args, *attack)
        assert (
            "recursive" in line
            and f"cut into blocks: it reads batch['{drawn}']" in line
        )
