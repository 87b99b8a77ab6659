"""The whole audit as one call: what it finds, says, writes and refuses."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

import invertjax
from invertjax import clients, driver, losses
from invertjax.auditing import Local, Watch, attackers
from invertjax.defenses import protections
from invertjax.defenses.protection import Parts

SHAPE = (1, *toy.SHAPE)


def batches(count=1, size=1):
    """`count` batches of the toy, along a leading axis."""
    rows = [toy.batch(i, size=size, label=i) for i in range(count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


PUBLIC = toy.batch(99, size=20)


def audit(attack="analytic", **options):
    """An audit of the toy, of one update unless said."""
    if "update" not in options:
        options = {"batches": batches(), **options}
    loss_fn = options.pop("loss_fn", toy.loss_fn)
    params = options.pop("params", toy.init(0))
    return invertjax.audit(jax.random.key(0), loss_fn, params, attack=attack, **options)


def decayed(params, batch):
    return toy.loss_fn(params, batch) + jnp.sum(params["last"]["kernel"] ** 2)


def smoothed(params, batch):
    logits = toy.apply(params, batch["image"])
    return losses.cross_entropy(logits, batch["label"], label_smoothing=0.2)


def test_blocks_are_found_in_the_loss():
    """And what the loss makes of the logits as well: smoothed labels here."""
    given = audit("recursive", blocks=toy.BLOCKS, control=False)
    for loss_fn in (toy.loss_fn, smoothed):
        found = audit("recursive", loss_fn=loss_fn, control=False)
        assert found.metrics["psnr"].values.min() > 80
    assert given.metrics["psnr"].values.min() > 80


@pytest.fixture(scope="module")
def found():
    """Of three updates, by the closed form."""
    return audit(batches=batches(3), public=PUBLIC)


def test_metrics_are_arrays_with_named_axes(found):
    psnr = found.metrics["psnr"]
    assert psnr.axes == ("update", "image") and psnr.values.shape == (3, 1)
    assert psnr.values.min() > 100  # a closed form, to rounding
    for name in ("label_recall", "loss", "update_rms"):
        assert found.metrics[name].axes == ("update",)
        assert found.metrics[name].values.shape == (3,)
    rms = found.metrics["update_rms"].values
    assert found.facts["update_rms_mean"] == pytest.approx(rms.mean())
    assert "x 1 restarts" in found.facts["layout"]  # where nobody asks for more
    assert "ssim" not in found.metrics  # images of 6 x 6 are smaller than its window
    np.testing.assert_array_equal(found.metrics["label_recall"].values, 1.0)


def test_nulls_and_the_verdict_stand_beside_them(found):
    assert found.nulls.keys() == {"mean_image", "random_image", "shuffled_update"}
    assert max(found.nulls.values()) < 20
    assert found.verdict.startswith("LEAKS") and "labels were given" in found.verdict
    assert found.threat_model["attack"] == found.attack == "analytic"


def test_without_any_control_a_bad_guess_is_no_alarm():
    """One step from noise, which is further off than grey."""
    found = audit("inverting_gradients", steps=1, control=False)
    assert found.nulls.keys() == {"grey_image"}
    assert found.metrics["psnr"].values.mean() < found.nulls["grey_image"]
    assert found.verdict.startswith("NO VERDICT")


def test_the_text_is_that_of_a_terminal(found):
    text = str(found)
    for part in ("PSNR dB", "over 3 targets", "shuffled update", found.verdict):
        assert part in text
    assert text.count("100%") == 4


def test_a_notebook_shows_originals_beside_reconstructions(found):
    page = found._repr_html_()
    assert page.startswith("<p><b>LEAKS") and "data:image/png;base64,iVBOR" in page


def test_files_are_those_of_the_command_line(found, tmp_path):
    found.save(tmp_path / "new" / "folder")
    written = {file.name: file.read_bytes() for file in tmp_path.glob("new/folder/*")}
    assert written == found.files()
    assert written.keys() == {
        "metrics.jsonl",
        "summary.json",
        "reconstructions.npz",
        "grid.png",
    }
    rows = [json.loads(line) for line in written["metrics.jsonl"].splitlines()]
    assert [row["target"] for row in rows] == [0, 1, 2]
    summary = json.loads(written["summary.json"])
    assert summary["psnr_mean"] == pytest.approx(found.metrics["psnr"].values.mean())
    with np.load(tmp_path / "new" / "folder" / "reconstructions.npz") as arrays:
        np.testing.assert_array_equal(arrays["original"], batches(3)["image"])


def test_without_pillow_one_line_says_which_extra_is_missing(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'invertjax\[report\]'"):
        found.files()


def test_an_update_is_attacked_without_a_truth():
    client = clients.gradient(toy.loss_fn)
    batch = toy.batch(1, label=2)
    update = client(toy.init(0), batch, jax.random.key(0))
    report = audit(update=update, shape=SHAPE)
    assert report.threat_model["labels"] == "inferred"
    np.testing.assert_allclose(
        report.arrays[0]["image"], batch["image"], atol=1e-4
    )  # a closed form
    assert report.rows[0]["labels"] == [2] and report.rows[0]["fit"] < 1e-6
    assert "Without the truth" in report.verdict and not report.nulls
    assert report.summary["psnr_mean"] is None
    told = audit(update=update, shape=SHAPE, labels=jnp.array([0]))
    assert told.rows[0]["labels"] == [0] and told.threat_model["labels"] == "known"


def test_audits_that_differ_in_numbers_share_what_is_compiled(monkeypatch):
    built, build = [], driver.build

    def counted(*args, **options):
        built.append(args)
        return build(*args, **options)

    monkeypatch.setattr(driver, "build", counted)
    cache = driver.Cache()
    options = {"attack": "inverting_gradients", "steps": 3, "cache": cache}
    for strength, rate in ((0.1, 0.01), (0.5, 0.02)):
        noise = protections.of("gaussian", strength)
        report = audit(
            protection=noise,
            protection_known=True,
            numbers={"learning_rate": rate},
            **options,
        )
        assert report.threat_model["defense"] == [f"gaussian:{strength}"]
    assert len(built) == 1
    audit(**options)  # another client for the attacker, but not where he does not know
    audit(protection=protections.of("prune", 0.5), **options)
    assert len(built) == 2


def test_local_training_is_simulated_by_who_knows_of_it():
    local = Local(steps=2, batch_size=1, learning_rate=0.1)
    options = {"attack": "gauss_newton", "local": local, "batches": batches(1, size=2)}
    known = audit(**options, control=False)
    blind = audit(**options, control=False, local_known=False)
    assert "FedAvg" in known.threat_model["update"]
    gain = known.metrics["psnr"].values.min() - blind.metrics["psnr"].values.min()
    assert gain > 20 and known.metrics["psnr"].values.min() > 60


def test_a_client_of_the_readers_own_is_run_backwards():
    """It shares twice the gradient, as one that sums over a batch of two would."""
    inner = clients.gradient(toy.loss_fn)

    def client(params, batch, key):
        return jax.tree.map(lambda leaf: 2 * leaf, inner(params, batch, key))

    report = audit(client=client)
    assert report.metrics["psnr"].values.min() > 100
    ratio = report.metrics["update_rms"].values / audit().metrics["update_rms"].values
    np.testing.assert_allclose(ratio, 2.0, rtol=1e-5)


def test_defenses_that_change_the_network_or_ask_for_its_parts():
    features, head = toy.BLOCKS
    parts = Parts(toy.CLASSES, features, head, "last", 8)
    options = {"attack": "inverting_gradients", "steps": 2, "control": False}
    for name, value in (("dropout", 0.5), ("soteria", 0.5)):
        one = protections.of(name, value)
        report = audit(parts=parts, protection=one, **options)
        bare = audit(**options)
        assert report.rows[0]["update_rms"] != bare.rows[0]["update_rms"]
        assert report.threat_model["defense"] == [f"{name}:{value}"]


def test_who_watches_is_told_of_every_update_and_may_stop():
    seen = []

    def stop():
        if len(seen) == 1:
            raise KeyboardInterrupt

    watch = Watch(check=stop, update=lambda row, arrays: seen.append(row["target"]))
    options = {"batches": batches(2), "attack": "inverting_gradients", "steps": 4}
    report = audit(**options, watch=watch)
    assert seen == [0, 1] and report.facts["interrupted"]
    assert [row["stopped"] for row in report.rows] == ["budget", "interrupted"]
    assert "shuffled_update" not in report.nulls


@pytest.mark.parametrize(
    "options, says",
    [
        ({"attack": "analytical"}, "attack='analytical' to be one of auto"),
        ({"update": {}, "batches": batches()}, "exactly one of update"),
        ({"update": {}}, "shape="),
        ({"batches": batches(1, size=2)}, "'analytic' reads 1 image"),
        ({"labels": "joint"}, "labels='joint' does not fit attack='analytic'"),
        ({"labels": "guessed"}, "labels='guessed' to be one of known, inferred"),
        ({"attack": "posterior"}, "'posterior' does not fit here: expected one known"),
        (
            {"attack": "posterior", "protection": protections.of("gaussian", 0.1)},
            "public=",
        ),
        (
            {"attack": "recursive", "loss_fn": decayed},
            "'recursive' does not fit here: the loss cannot be cut .*: .* weight decay",
        ),
        (
            {"attack": "recursive", "local": Local(2, 1), "blocks": toy.BLOCKS},
            "every layer in turn: expected None",
        ),
        ({"steps": 3}, "steps=3 does not apply to attack='analytic'"),
        ({"warm_start": "recursive"}, "warm_start='recursive' does not apply"),
        ({"numbers": {"rate": 1}}, "'rate': attack='analytic' can be told no number"),
        ({"restarts": 0}, "restarts=0 >= 1"),
        (
            {"batches": {**batches(), "image": np.zeros((1, *SHAPE), np.uint8)}},
            r"batches\['image'\] of type uint8 .* by 255",
        ),
        (
            {"batches": {**batches(), "image": np.full((1, *SHAPE), 1.5)}},
            r"batches\['image'\] in \[0, 1\].* 1.5 to 1.5: put the normalisation",
        ),
        (
            {"batches": {**batches(), "image": np.full((1, *SHAPE), np.nan)}},
            r"batches\['image'\] in \[0, 1\]",
        ),
        (
            {"public": {**PUBLIC, "image": PUBLIC["image"] - 1}},
            r"public\['image'\] in \[0, 1\]",
        ),
        (
            {"loss_fn": lambda params, batch: (toy.loss_fn(params, batch), {})},
            r"got a tuple of 2",
        ),
        (
            {"loss_fn": lambda params, batch: batch["mask"].sum()},
            r"reads batch\['mask'\], and a guess has \['image', 'label'\]",
        ),
        (
            {"params": jax.tree.map(lambda leaf: leaf * np.nan, toy.init(0))},
            "params that are all finite",
        ),
        ({"batches": toy.batch(1)}, r"\(N, B, H, W, C\) and \(N, B\)"),
        (
            {"public": {"image": np.ones((2, 5, 6, 1))}},
            r"public images.*\(2, 5, 6, 1\)",
        ),
        (
            {"protection": protections.of("precode", 4)},
            "Expected parts of the network",
        ),
        ({"warm_start": "posterior"}, "warm_start='posterior' to be one of recursive"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_compiled(
    options, says, monkeypatch
):
    monkeypatch.setattr(driver, "build", None)
    monkeypatch.setattr(driver.Cache, "__call__", None)
    with pytest.raises(ValueError, match=says):
        audit(**options)


def test_rows_are_told_apart_by_their_names():
    for name, row in attackers.ATTACKERS.items():
        assert row.name == name and attackers.named(row) is row
        assert row.steps is None or row.steps > 0
        assert set(row.labels) <= {"known", "inferred", "joint"}


def test_an_update_that_a_closed_form_reads_is_no_all_clear():
    found = audit("inverting_gradients", steps=1, control=False, batches=batches(2))
    assert found.facts["closed_form"] == "analytic"
    assert found.verdict.startswith("NO VERDICT: the attack analytic")
    assert audit().facts["closed_form"] == ""  # it was the attack


def test_an_attack_that_never_started_is_no_reconstruction():
    """A root of zero has no gradient: its start was a result once."""

    def rooted(params, batch):
        root = jnp.sqrt(0 * batch["image"]).sum()
        return toy.loss_fn(params, batch) + root * params["last"]["bias"].sum()

    report = audit("inverting_gradients", loss_fn=rooted, steps=3, control=False)
    assert report.verdict.startswith("FAILED")
    (row,) = report.rows
    assert row["loss"] is None and row["stopped"] == "no finite step"
    assert report.summary["failed"] == 1
