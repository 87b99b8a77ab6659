"""Certificates of an audit: what is determined, and found twice; and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

import invertjax
from invertjax import losses
from invertjax.auditing import Local, Watch, attackers, certifying, programs
from invertjax.auditing.preparing import Prepared
from invertjax.auditing.situations import Situation, Target, Threat
from invertjax.defenses import protections
from invertjax.defenses.protection import Parts
from invertjax.driver import Cache

CACHE = Cache()
PARAMS = toy.init(0, hidden=16)


def batches(count=1, size=1, shape=toy.SHAPE):
    rows = [toy.batch(i, size=size, shape=shape, label=i) for i in range(count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def audit(attack="gauss_newton", loss_fn=toy.loss_fn, params=PARAMS, **options):
    options = {"batches": batches(), "control": False, "cache": CACHE, **options}
    return invertjax.audit(jax.random.key(0), loss_fn, params, attack=attack, **options)


def listening(heard):
    """A watch that writes down what takes long."""
    return Watch(doing=lambda words: heard.append(words) or Watch().doing(words))


def said(report):
    """What was certified, and what the report says of it."""
    assert report.summary["false_certificates"] in (0, None)
    flags = report.metrics["certified"].values
    return flags, report.facts.get("certified_by"), report.facts.get("not_certified")


@pytest.mark.parametrize("attack", ["gauss_newton", "recursive"])
def test_what_is_solved_is_certified(attack):
    heard = []
    report = audit(attack, batches=batches(2, size=2), watch=listening(heard))
    certified, by, reason = said(report)
    assert certified.all() and certified.shape == (2, 2) and reason is None
    assert by == "identifiability and a second start" and by in str(report)
    assert report.metrics["psnr"].values.min() >= 40
    assert report.summary["certified_share"] == 1
    assert report.facts["seconds_certify"] > 0
    assert sum("another start" in words for words in heard) == 1


def conv_loss(params, batch):
    x = jnp.tanh(convolved(batch["image"], params["conv"]))
    logits = toy.dense(params["head"], x.reshape(len(x), -1))
    return losses.cross_entropy(logits, batch["label"])


def convolved(images, kernel):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, kernel, (2, 2), "SAME", dimension_numbers=names
    )


def conv_params(seed):
    normal = np.random.default_rng(seed).standard_normal
    head = {"kernel": normal((128, 4)) / 11, "bias": np.zeros(4)}
    tree = {"conv": normal((5, 5, 1, 8)) / 5, "head": head}
    return jax.tree.map(toy.floats, tree)


def test_a_convolution_is_certified_too():
    given = batches(1, 1, (8, 8, 1))
    report = audit(loss_fn=conv_loss, params=conv_params(0), batches=given)
    certified, _, _ = said(report)
    assert certified.all() and report.metrics["psnr"].values.min() >= 40


def mirrored(params, batch):
    """The same of an image and its negative, pixel by pixel: every choice of signs
    explains the update exactly, and none can be told from another nearby."""
    return toy.loss_fn(params, {**batch, "image": (2 * batch["image"] - 1) ** 2})


def test_one_of_several_solutions_is_not_certified():
    report = audit(loss_fn=mirrored)
    certified, by, reason = said(report)
    assert report.rows[0]["fit"] < 1e-5 and report.metrics["psnr"].values.max() < 40
    assert not certified.any() and by is None
    assert reason == "a second start does not arrive at the same batch"
    assert f"Nothing is certified: {reason}" in str(report)


def cropped(params, batch):
    return toy.loss_fn(params, {**batch, "image": batch["image"].at[:, :, -1].set(0.0)})


def test_what_is_not_determined_is_not_certified():
    certified, _, reason = said(audit(loss_fn=cropped))
    assert not certified.any()
    assert reason == "some change of the batch leaves the update as it is"


def gradient(params, batch):
    return jax.grad(toy.loss_fn)(params, batch)


def wrong():
    """Updates that would mislead, by name, each as `(update, labels)`."""
    batch = toy.batch(0, size=2, label=0)
    update, labels = gradient(PARAMS, batch), np.asarray(batch["label"])
    noise = np.random.default_rng(0).standard_normal

    def noisy(leaf, size):
        return leaf + toy.floats(size * jnp.std(leaf) * noise(leaf.shape))

    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), update)
    return {
        "another network": (gradient(toy.init(7, hidden=16), batch), labels),
        "noise": (jax.tree.map(lambda leaf: noisy(leaf, 1e-2), update), labels),
        "little noise": (jax.tree.map(lambda leaf: noisy(leaf, 1e-4), update), labels),
        "wrong labels": (update, 2 - labels),
        "soft labels": (gradient(PARAMS, toy.soft(batch)), labels),
        "bfloat16": (jax.tree.map(lambda x: x.astype(jnp.float32), narrow), labels),
    }


def of_saved(update, labels):
    """The report of an update whose truth is not known, and what was done."""
    shape, doing = (2, *toy.SHAPE), []
    options = {"batches": None, "shape": shape, "num_classes": 3, "steps": 20}
    watch = listening(doing)
    return audit(update=update, labels=labels, watch=watch, **options), doing


@pytest.mark.parametrize("name", wrong())
def test_decoys_are_not_certified(name):
    report, calls = of_saved(*wrong()[name])
    certified, by, _ = said(report)
    assert not certified.any() and by is None
    assert not any("another start" in words for words in calls)
    # Where the update is not even nearly explained, it costs nothing.
    explained = report.rows[0]["fit"] <= certifying.NEARLY
    assert ("seconds_certify" in report.facts) == explained
    assert any("determines" in words for words in calls) == explained
    assert explained == (name in ("little noise", "bfloat16"))


def test_the_update_they_are_made_of_is_certified():
    batch = toy.batch(0, size=2, label=0)
    report, _ = of_saved(gradient(PARAMS, batch), np.asarray(batch["label"]))
    certified, by, _ = said(report)
    assert certified.all() and by
    for image in report.arrays[0]["image"]:
        far = np.mean((image - np.asarray(batch["image"])) ** 2, axis=(1, 2, 3))
        assert far.min() < 1e-4


def test_an_interrupted_second_start_certifies_nothing():
    """And says so, that the run may go on."""
    heard = []

    def check():
        if any("another start" in words for words in heard):
            raise KeyboardInterrupt

    watch = listening(heard)._replace(check=check)
    report = audit(batches=batches(2, size=2), watch=watch)
    certified, by, reason = said(report)
    assert report.facts["interrupted"] and not certified.any() and by is None
    assert reason == "the second start was interrupted"


def test_it_can_be_left_out():
    certified, by, reason = said(audit(batches=batches(2, size=2), certify=False))
    assert not certified.any() and by is reason is None


TARGET = Target(toy.loss_fn, (1, *toy.SHAPE), Parts(3))
DROPPED = protections.of("prune", 0.5)


@pytest.mark.parametrize(
    "changed, why",
    [
        ({}, None),
        ({"local": Local(1, 1)}, "without local training"),
        ({"protections": (DROPPED,)}, "without a defense"),
        ({"client": invertjax.clients.gradient(toy.loss_fn)}, "without a client"),
        ({"members": (1.0,)}, "without a mean"),
        ({"shape": (1, 80, 80, 1)}, "6400 unknowns"),
        ({"shape": (16, *toy.SHAPE)}, "too few"),
        ({"labels": "joint"}, "without labels that are optimised"),
    ],
)
def test_what_can_have_no_certificates(changed, why):
    threat = Threat(changed.pop("labels", "known"))
    target = TARGET._replace(**changed)
    update = jax.tree.map(lambda leaf: np.asarray(leaf)[None], PARAMS)
    trials = {"update": update, "label": np.zeros((1, target.shape[0]), int)}
    situation = Situation(target, threat, {"params": PARAMS}, trials)
    plan = programs.Plan(attackers.GAUSS_NEWTON, 50)
    reason = certifying._refuses(Prepared(situation, plan, target))
    assert reason is None if why is None else why in str(reason)


def test_only_rows_that_say_so_are_certified():
    says = {name for name, row in attackers.ATTACKERS.items() if row.identifiable}
    assert says == {"gauss_newton", "recursive"}


def test_images_are_found_again_in_any_order_but_with_their_labels():
    batch = toy.batch(0, size=3, label=0)
    mine = jax.tree.map(np.asarray, batch)
    other = jax.tree.map(lambda leaf: leaf[::-1], mine)
    assert certifying._met(mine, other).tolist() == [True] * 3
    moved = {**other, "image": other["image"].copy()}
    moved["image"][0] += 0.02
    assert certifying._met(mine, moved).tolist() == [True, True, False]
    relabelled = {**other, "label": np.roll(other["label"], 1)}
    assert not certifying._met(mine, relabelled).any()
