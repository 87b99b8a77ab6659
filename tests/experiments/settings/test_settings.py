"""Settings: their defaults, and that what cannot be is refused at once, in one line."""

import pathlib
import re

import jax.numpy as jnp
import pytest
from support import cli

import models
from experiments.reconstruct import __main__ as reconstruct
from experiments.settings import settings
from experiments.settings.settings import flat
from invertjax import distances
from invertjax.auditing.situations import LABELS
from invertjax.cli import defense_text
from invertjax.defenses import protection

PRESETS = pathlib.Path("experiments/presets")
GIVEN = ("--update=u.npz", "--params=p.npz", "--batch_size=1", "--image_shape=8,8,3")
LOCAL = ("--local_steps=2", "--batch_size=4")

# What is said of each: the flag with its value, and what is right.
REFUSED = [
    # unknown names, with near misses
    (["--attack=analytical"], ["--attack=analytical", "'analytic'", "deep_leakage"]),
    (["--model=lenett"], ["--model=lenett", "'lenet'", "resnet18"]),
    (["--activation=rely"], ["--activation=rely", "'relu'", "sigmoid"]),
    (["--norm=bath"], ["--norm=bath", "'batch'", "group"]),
    (["--init=wode"], ["--init=wode", "'wide'", "default"]),
    (["--labels=inferrd"], ["--labels=inferrd", "'inferred'", "joint"]),
    (["--networks=share"], ["--networks=share", "'shared'", "per_target"]),
    (["--norm_mode=evil", "--norm=batch"], ["--norm_mode=evil", "'eval'"]),
    (["--defense=prone:0.9"], ["--defense=prone:0.9", "'prune'", "gaussian"]),
    (["--defence=sign"], ["defence", "defense"]),
    (["--batchsize=4"], ["batchsize", "batch_size"]),
    (["photos"], ["photos", "--"]),
    # numbers out of range
    (["--batch_size=0"], ["--batch_size=0", "1 or more"]),
    (["--targets=0"], ["--targets=0", "1 or more"]),
    (["--restarts=-1"], ["--restarts=-1", "1 or more"]),
    (["--steps=0"], ["--steps=0", "1 or more"]),
    (["--width=0"], ["--width=0", "1 or more"]),
    (["--image_size=4"], ["--image_size=4", "8 or more"]),
    (["--seed=-1"], ["--seed=-1", "0 or more"]),
    (["--train_steps=-5"], ["--train_steps=-5", "0 or more"]),
    (["--local_steps=-1"], ["--local_steps=-1", "0 or more"]),
    (["--total_variation=-1"], ["--total_variation=-1.0", "0 or more"]),
    (["--total_variation=nan"], ["--total_variation=nan", "0 or more"]),
    (["--attack_lr=0"], ["--attack_lr=0.0", "positive"]),
    ([*LOCAL, "--local_lr=inf"], ["--local_lr=inf", "positive"]),
    (["--train_steps=1", "--train_lr=-1"], ["--train_lr=-1.0", "positive"]),
    ([*LOCAL, "--local_batch=0"], ["--local_batch=0", "1 or more"]),
    ([*LOCAL, "--local_batch=5"], ["--local_batch=5", "--batch_size=4", "at most"]),
    # numbers so large that they would collide, or never end, or fill the machine
    (["--seed=4294967294"], ["--seed=4294967294", "at most 4294967293", "2^32"]),
    ([f"--seed={2**63 - 1}"], [f"--seed={2**63 - 1}", "at most 4294967293"]),
    (["--steps=3000000000"], ["--steps=3000000000", "at most 10000000", "hours"]),
    (["--restarts=1000000000"], ["--restarts=1000000000", "at most 1000000", "TB"]),
    (["--restarts=999999", "--steps=9999999"], ["--restarts=999999", "40 TB"]),
    (["--image_size=20000"], ["--image_size=20000", "at most 8192", "4.8 GB"]),
    (
        ["--image_size=8192", "--batch_size=999999"],
        ["--batch_size=999999", "8192 x 8192", "PB", "this machine has"],
    ),
    ([f"--width={10**20}"], [f"--width={10**20}", "at most 100000", "EB"]),
    (["--batch_size=2000000"], ["--batch_size=2000000", "at most 1000000"]),
    (["--targets=2000000"], ["--targets=2000000", "at most 1000000", "hours"]),
    (["--train_steps=20000000"], ["--train_steps=20000000", "at most 10000000"]),
    (["--local_steps=2000000"], ["--local_steps=2000000", "at most 1000000"]),
    (
        [*GIVEN[:3], "--image_shape=999999,999999,3", "--model=mlp"],
        ["999999 x 999999", "24 TB", "this machine has"],
    ),
    (["--steps=many"], ["steps", "many"]),
    (["--x64=maybe"], ["x64", "maybe"]),
    # defenses
    (["--defense=clip:0"], ["--defense=clip:0", "positive"]),
    (["--defense=gaussian:-1"], ["--defense=gaussian:-1", ">= 0"]),
    (["--defense=laplace:inf"], ["--defense=laplace:inf", ">= 0"]),
    (["--defense=prune:1"], ["--defense=prune:1", "[0, 1)"]),
    (["--defense=prune:99%"], ["--defense=prune:99%", "[0, 1)"]),
    (["--defense=prune"], ["--defense=prune", "VALUE"]),
    (["--defense=quantise:1"], ["--defense=quantise:1", "2 to 32"]),
    (["--defense=quantise:2.5"], ["--defense=quantise:2.5", "whole"]),
    (["--defense=quantise:nan"], ["--defense=quantise:nan", "whole"]),
    (["--defense=quantise:inf"], ["--defense=quantise:inf", "whole"]),
    (["--defense=sign:0.5"], ["--defense=sign:0.5", "without a value"]),
    (["--defense=clip:1", "--defense=sgn"], ["--defense=sgn", "'sign'"]),
    # flags without an effect, whatever their value
    (["--attack=analytic", "--restarts=1"], ["--restarts=1", "iterative"]),
    (["--attack=analytic", "--steps=9"], ["--steps=9", "iterative"]),
    (["--attack=analytic", "--stop=never"], ["--stop=never", "iterative"]),
    (["--stop=halved"], ["--stop=halved", "'halving'"]),
    (["--attack=deep_leakage", "--attack_lr=1"], ["--attack_lr=1.0", "inverting"]),
    (
        ["--attack=deep_leakage", "--total_variation=0"],
        ["--total_variation=0.0", "inverting_gradients"],
    ),
    (["--local_batch=1"], ["--local_batch=1", "--local_steps"]),
    (["--local_epochs=0"], ["--local_epochs=0", "1 or more"]),
    (
        ["--local_epochs=2", "--batch_size=5", "--local_batch=2", "--local_steps=4"],
        ["--local_steps=4", "--local_epochs=2", "6 steps of 2 of the 5 images"],
    ),
    (["--local_steps=0", "--local_lr=0.1"], ["--local_lr=0.1", "--local_steps"]),
    (["--local_shuffle"], ["--local_shuffle=True", "--local_steps"]),
    (["--nolocal_shuffle"], ["--local_shuffle=False", "--local_steps"]),
    (["--nolocal_known"], ["--local_known=False", "--local_steps"]),
    (["--local_known"], ["--local_known=True", "--local_steps"]),
    (["--train_lr=0.1"], ["--train_lr=0.1", "--train_steps"]),
    (["--defense_known"], ["--defense_known=True", "--defense"]),
    (["--nodefense_known"], ["--defense_known=False", "--defense"]),
    (["--norm_mode=train"], ["--norm_mode=train", "--norm=batch"]),
    (["--params=p.npz"], ["--params=p.npz", "--update"]),
    (["--loss=m:f"], ["--loss=m:f", "--update"]),
    (["--image_shape=8,8,3"], ["--image_shape=8,8,3", "--update"]),
    (["--num_classes=0"], ["--num_classes=0", "1 or more"]),
    (["--num_classes=10"], ["--num_classes=10", "--update"]),
    (
        ["--train_steps=5", "--networks=per_target"],
        ["--networks=per_target", "untrained"],
    ),
    (["--overwrite", "--resume"], ["--overwrite", "--resume", "one"]),
    # attacks that do not fit
    (["--attack=analytic", "--batch_size=2"], ["--batch_size=2", "analytic", "1"]),
    (["--attack=idlg", "--batch_size=2"], ["--batch_size=2", "idlg", "1"]),
    (["--attack=idlg", "--labels=known"], ["--labels=known", "inferred"]),
    (["--attack=analytic", "--labels=joint"], ["--labels=joint", "known"]),
    (["--attack=recursive", "--labels=joint"], ["--labels=joint", "known"]),
    (["--attack=recursive", "--steps=5"], ["--steps=5", "iterative"]),
    (
        ["--attack=recursive", "--local_steps=2"],
        ["--local_steps=2", "--attack=recursive", "0"],
    ),
    (
        ["--attack=recursive", "--model=cnn", "--norm=batch", "--norm_mode=eval"],
        ["--norm_mode=eval", "train"],
    ),
    (["--warm_start=cursive"], ["--warm_start=cursive", "'recursive'"]),
    (
        ["--warm_start=recursive", "--attack=analytic"],
        ["--warm_start=recursive", "iterative"],
    ),
    (
        ["--warm_start=recursive", "--attack=gauss_newton", "--labels=joint"],
        ["--labels=joint", "--warm_start=recursive", "known"],
    ),
    # with a given update
    (["--update=u.npz"], ["--update=u.npz", "--params"]),
    (
        ["--update=u.npz", "--params=p.npz", "--image_shape=8,8,3", "--model=mlp"],
        ["--update=u.npz", "--batch_size"],
    ),
    (
        ["--update=u.npz", "--params=p.npz", "--batch_size=1", "--model=mlp"],
        ["--update=u.npz", "--image_shape"],
    ),
    ([*GIVEN, "--image_shape=8,8", "--model=mlp"], ["--image_shape=8,8:", "H,W,C"]),
    ([*GIVEN, "--image_shape=8,x,3", "--model=mlp"], ["--image_shape=8,x,3", "H,W,C"]),
    ([*GIVEN, "--image_shape=8,0,3", "--model=mlp"], ["--image_shape=8,0,3", "H,W,C"]),
    ([*GIVEN], ["--update=u.npz", "--model", "--loss"]),
    ([*GIVEN, "--loss=m:f"], ["--update=u.npz", "--num_classes"]),
    ([*GIVEN, "--loss=m:f", "--width=4"], ["--width=4", "--loss"]),
    (["--loss=m:f"], ["--loss=m:f", "--model", "--update", "(params, batch)"]),
    (["--model=m:f", "--width=4"], ["--width=4", "--model=m:f is your own"]),
    (["--model=m:f", "--norm=batch"], ["--norm=batch", "--model=m:f is your own"]),
    (["--model=m:"], ["--model=m:", "package.module:name of your own"]),
    (
        [*GIVEN, "--model=mlp", "--norm_mode=train"],
        ["--norm_mode=train", "--update", "--model of your own"],
    ),
    ([*GIVEN, "--model=mlp", "--dataset=photos"], ["--dataset=photos", "--update"]),
    ([*GIVEN, "--model=mlp", "--split=test"], ["--split=test", "--update"]),
    ([*GIVEN, "--model=mlp", "--targets=1"], ["--targets=1", "--update"]),
    ([*GIVEN, "--model=mlp", "--train_steps=0"], ["--train_steps=0", "--update"]),
    ([*GIVEN, "--model=mlp", "--networks=shared"], ["--networks=shared", "--update"]),
    ([*GIVEN, "--model=mlp", "--nonull_control"], ["--null_control=False", "--update"]),
    ([*GIVEN, "--model=mlp", "--checkpoint=c"], ["--checkpoint=c", "--params"]),
    ([*GIVEN, "--model=mlp", "--labels=known"], ["--labels=known", "joint"]),
    ([*GIVEN, "--model=mlp", "--defense=sign"], ["--defense=sign", "--defense_known"]),
    (
        "--labels=inferred --batch_size=4 --local_steps=2 --local_batch=2".split(),
        ["--local_batch=2", "--labels=inferred", "expected --local_batch=4"],
    ),
    (
        "--labels=inferred --batch_size=2 --defense=mixup:2 --defense_known".split(),
        ["--labels=inferred", "--defense=mixup:2", "--defense_known"],
    ),
]


@pytest.mark.parametrize("args, fragments", REFUSED, ids=lambda value: " ".join(value))
def test_bad_settings_are_refused_in_one_line(args, fragments, capsys, tmp_path):
    line = cli.refused(capsys, tmp_path / "run", *args)
    for fragment in fragments:
        assert fragment in line


# What stays None: it is the model's or the data set's own, or does not apply.
OWN = {"data_dir", "image_size", "activation", "norm", "init", "width", "hidden"}
OWN |= {"normalise"}
ABSENT = {
    "warm_start",
    "checkpoint",
    "update",
    "params",
    "loss",
    "image_shape",
    "num_classes",
}
LOCALS = {"local_epochs", "local_batch", "local_lr", "local_shuffle", "local_known"}
FIRST_ORDER = {"attack_lr", "total_variation"}
UNUSED = {"norm_mode", "train_lr", "defense_known"}


@pytest.mark.parametrize(
    "attack, unused",
    [
        ("auto", set()),
        ("inverting_gradients", set()),
        ("gauss_newton", FIRST_ORDER),
        ("deep_leakage", FIRST_ORDER),
        ("idlg", FIRST_ORDER),
        ("analytic", FIRST_ORDER | {"restarts", "steps", "stop"}),
        ("peeling", FIRST_ORDER),
        ("recursive", FIRST_ORDER | {"restarts", "steps", "stop"}),
    ],
)
def test_every_attack_has_defaults_for_everything(attack, unused):
    found = cli.resolved(attack=attack)
    assert found.victim.model in models.NAMES and found.attack.labels in LABELS
    empty = {k for k, v in flat(found).items() if v is None}
    assert empty == OWN | ABSENT | LOCALS | UNUSED | unused
    assert cli.resolved(attack=attack, seed=1) != found


@pytest.mark.parametrize(
    "given",
    [
        dict(),
        dict(attack="analytic"),
        dict(train_steps=5, local_steps=2, defense=("sign",), model="resnet20"),
        dict(local_epochs=3, batch_size=5, local_batch=2),
        dict(update="u", params="p", model="mlp", batch_size=1, image_shape=(8, 8, 3)),
    ],
)
def test_what_is_resolved_can_be_given_again(given):
    found = cli.resolved(**given)
    assert settings.resolve(settings.values(found)) == found
    assert settings.resolve(cli.given(*cli.flags(flat(found)))) == found


def test_what_is_given_is_kept():
    given = dict(
        dataset="faces",
        model="lenet",
        batch_size=4,
        targets=3,
        steps=7,
        labels="inferred",
        total_variation=0.0,
        local_steps=3,
        local_batch=2,
        local_known=False,
        defense=("clip:1", "sign"),
        defense_known=True,
        networks="shared",
    )
    assert flat(cli.resolved(**given)).items() >= given.items()


@pytest.mark.parametrize(
    "given, expected",
    [
        (dict(), dict(networks="per_target", split="test", train_split="train")),
        (dict(train_steps=5), dict(networks="shared", train_lr=0.05)),
        (dict(checkpoint="c.safetensors"), dict(networks="shared")),
        (dict(attack="deep_leakage"), dict(model="lenet", labels="joint")),
        (dict(attack="idlg"), dict(model="lenet", labels="inferred")),
        (dict(attack="analytic"), dict(model="mlp", labels="known")),
        (dict(batch_size=4, local_steps=2), dict(local_batch=4, local_known=True)),
        (dict(local_epochs=3, batch_size=5, local_batch=2), dict(local_steps=9)),
        (dict(norm="batch"), dict(norm_mode="train")),
        (dict(model="resnet20"), dict(norm_mode="train")),
        (dict(model="resnet20", norm="none"), dict(norm_mode=None)),
    ],
)
def test_defaults_follow_the_other_settings(given, expected):
    found = flat(cli.resolved(**given))
    assert {name: found[name] for name in expected} == expected


def test_precision():
    assert cli.resolved(x64=True).run.dtype == "float64"
    assert cli.resolved().run.dtype == "float32"


@pytest.mark.parametrize(
    "attack, labels",
    [("auto", "inferred"), ("idlg", "inferred"), ("deep_leakage", "joint")],
)
def test_a_given_update_comes_without_labels_and_without_data(attack, labels):
    found = flat(
        cli.resolved(
            attack=attack,
            update="u.npz",
            params="p.npz",
            model="mlp",
            batch_size=1,
            image_shape=(8, 8, 3),
        )
    )
    assert found["labels"] == labels and found["batch_size"] == 1
    of_data = ("dataset", "split", "targets", "networks", "null_control")
    assert all(found[name] is None for name in of_data)


def test_runs_of_different_settings_get_different_folders():
    def digest(**given):
        return settings.digest(flat(cli.resolved(**given)))

    assert digest(seed=0) == digest() != digest(seed=1)
    assert digest(seed=1) == digest(seed=1, dataset="photos", batch_size=1)
    # That of a run's default folder, which a run goes on with after an update.
    assert digest() == "659b41a2"


def test_defenses_are_parsed_in_order():
    texts = ("clip:1e1", "prune:.5", "sign", "gaussian:0", "quantise:8")
    found = list(map(defense_text.parse, texts))
    assert [one.name for one in found] == "clip prune sign gaussian quantise".split()
    assert [one.value for one in found] == [10, 0.5, None, 0, 8]
    assert tuple(map(str, found)) == texts


def test_who_knows_of_a_defense_looks_past_it():
    true, guess = jnp.array([6.0, 8.0, 1.0]), jnp.array([12.0, 16.0, 1.0])
    cases = {
        ("prune:.5",): jnp.array([6.0, 8.0, 0.0]),
        ("clip:5", "prune:.5"): jnp.array([3.0, 4.0, 0.0]) * 10 / jnp.linalg.norm(true),
        ("prune:.5", "clip:5"): jnp.array([3.0, 4.0, 0.0]),
    }
    for texts, observed in cases.items():
        known = list(map(defense_text.parse, texts))
        adapted = protection.adapted(distances.squared, known)
        assert adapted(true, observed) == pytest.approx(0, abs=1e-10)
        assert distances.squared(true, observed) > 0.5
    assert adapted(guess, observed) == pytest.approx(0, abs=1e-10)  # as long, clipped


def test_noise_has_no_adaptive_form():
    known = list(map(defense_text.parse, ("gaussian:1", "sign", "clip:1")))
    assert [one.is_adaptable for one in known] == [False, False, True]
    assert protection.adapted(distances.l1, known[:2]) == distances.l1


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.flags")), ids=lambda p: p.stem)
def test_presets(path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        reconstruct.terminal, "reconstruct", lambda given, *_: seen.append(given)
    )
    assert cli.run(f"--flagfile={path}") is None
    settings.resolve(seen[0])
    comment, *lines = path.read_text().splitlines()
    assert re.fullmatch(r"# .{20,}", comment)
    for line in lines:
        assert line.startswith(("--", "# "))
    # Each names its attack and model, so that a change of defaults leaves it alone.
    assert seen[0]["attack"] != "auto" and seen[0]["model"]


def test_presets_are_those_of_the_documentation():
    names = "analytic deep_leakage fedavg gauss_newton inverting_gradients "
    names += "pruned_adaptive"
    assert sorted(path.stem for path in PRESETS.glob("*.flags")) == names.split()


def test_a_later_flag_wins_over_a_preset(monkeypatch):
    seen = []
    monkeypatch.setattr(
        reconstruct.terminal, "reconstruct", lambda given, *_: seen.append(given)
    )
    cli.run(f"--flagfile={PRESETS / 'fedavg.flags'}", "--nolocal_known")
    assert seen[0]["local_steps"] == 4
    assert settings.resolve(seen[0]).attack.local_known is False
