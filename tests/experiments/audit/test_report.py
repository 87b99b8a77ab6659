"""What a run says of itself: threat model, verdict, table, picture, null baselines."""

import numpy as np
import pytest
from PIL import Image
from support import cli

from experiments.audit import baselines, report
from experiments.settings.config import Config, resolve

cheap_compilation = cli.cheap_compilation  # a fixture


def _threats(attack="inverting_gradients", **settings):
    return report.threat_model(resolve(Config(attack=attack, **settings)), attack)


def test_the_threat_model_says_everything_that_was_given():
    threats = _threats()
    assert set(threats) == {
        "server",
        "attack",
        "labels",
        "batch_size",
        "update",
        "local_steps",
        "defense",
        "defense_adaptive",
        "batch_norm",
        "public_data",
        "selection",
    }
    assert all(isinstance(value, str) for value in threats.values())
    assert threats["attack"] == "inverting_gradients" and threats["labels"] == "known"


LOCAL = dict(local_steps=4, batch_size=4, local_batch=2)
GIVEN = dict(update="u", params="p", model="mlp", batch_size=2, image_shape=(8, 8, 3))


@pytest.mark.parametrize(
    "settings, name, says",
    [
        (dict(), "update", "FedSGD"),
        (dict(), "local_steps", "none"),
        (dict(), "defense_adaptive", "no defense"),
        (dict(defense=("sign",)), "defense_adaptive", "does not know"),
        (dict(defense=("prune:.9",), defense_known=True), "defense_adaptive", "yes"),
        (
            dict(defense=("clip:1", "sign"), defense_known=True),
            "defense_adaptive",
            "partly: known, but there is no adaptive form of sign",
        ),
        (
            dict(defense=("gaussian:1", "sign"), defense_known=True),
            "defense_adaptive",
            "no: known, but there is no adaptive form of gaussian, sign",
        ),
        (LOCAL, "update", "FedAvg"),
        (LOCAL, "local_steps", "order known"),
        ({**LOCAL, "local_shuffle": True}, "local_steps", "order unknown"),
        ({**LOCAL, "local_known": False}, "local_steps", "treated as one gradient"),
        (
            {**LOCAL, "local_known": False, "labels": "inferred"},
            "local_steps",
            "rate serve to count labels",
        ),
        (dict(labels="inferred"), "public_data", "none"),
        (dict(labels="inferred", batch_size=2), "public_data", "--train_split=train"),
        (GIVEN, "public_data", "noise images"),
        (GIVEN, "labels", "inferred"),
        (dict(), "batch_norm", "none in the model"),
        (dict(norm="batch"), "batch_norm", "train mode: statistics of the batch"),
        (dict(norm="batch", norm_mode="eval"), "batch_norm", "eval mode"),
        (dict(model="resnet20"), "batch_norm", "train mode"),
        (
            {**GIVEN, "model": None, "loss": "m:f", "num_classes": 2},
            "batch_norm",
            "as the given loss has it",
        ),
    ],
)
def test_the_threat_model_says_what_differs(settings, name, says):
    assert says in _threats(**settings)[name]


def test_defenses_are_listed_in_order():
    assert _threats(defense=("sign", "clip:1"))["defense"] == ["sign", "clip:1"]


@pytest.mark.parametrize(
    "psnr, null, says",
    [
        (60.0, 12.0, "LEAKS: the update gives the images back almost exactly"),
        (22.0, 12.0, "LEAKS: the reconstructed images are recognisable"),
        (22.0, 21.0, "NOT RECONSTRUCTED"),  # a guess does as well
        (16.0, 12.0, "LEAKS IN PART"),
        (14.0, 12.0, "NOT RECONSTRUCTED"),
    ],
)
def test_verdicts(psnr, null, says):
    verdict = report.verdict(psnr, null, "known")
    assert verdict.startswith(says)
    assert ("labels were given" in verdict) == says.startswith("LEAKS")
    assert "labels were given" not in report.verdict(psnr, null, "inferred")


@pytest.mark.parametrize(
    "fit, says",
    [
        (1e-6, "almost completely"),
        (1e-2, "in part"),
        (0.9, "nothing was recovered"),
        (None, "FAILED"),
    ],
)
def test_verdicts_without_the_truth(fit, says):
    assert says in report.verdict_blind(fit)
    assert "dB" not in report.verdict_blind(fit)


def test_tables_are_aligned():
    text = report.table([("a", "1.0"), ("bcd", "22.5")], ("name", "dB"))
    assert text.splitlines() == ["name    dB", "----  ----", "a      1.0", "bcd   22.5"]


def test_the_grid_holds_every_image_unsmoothed():
    colours = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    images = np.broadcast_to(colours[:, None, None], (3, 2, 2, 3))
    grey = np.full((1, 2, 2, 1), np.nan)  # what is not finite is black, not an error
    picture = report.grid([("original", images, ["1 dB"]), ("guess", grey, [])], side=8)
    assert isinstance(picture, Image.Image) and picture.mode == "RGB"
    pixels = np.asarray(picture).reshape(-1, 3)
    for colour in colours:
        assert np.all(pixels == 255 * colour, axis=1).sum() == 64


def test_values_out_of_range_are_clipped_in_the_grid():
    images = np.array([-1.0, 2.0]).reshape(2, 1, 1, 1)
    pixels = np.asarray(report.grid([("", images, [])], side=4))[:4, 190:210, 0]
    assert set(pixels.flatten().tolist()) == {0, 255}


def test_null_baselines_of_known_images():
    """mse of a constant guess c on a constant image x is (x - c)^2."""
    truth = {"image": np.zeros((3, 2, 8, 8, 1), np.float32)}
    public = np.full((5, 8, 8, 1), 0.1, np.float32)
    found = baselines.guesses(truth, public, seed=0)
    for name in ("mean_image", "random_image"):
        assert found[name]["psnr_mean"] == pytest.approx(20.0, abs=1e-4)
        assert found[name]["psnr_std"] == pytest.approx(0.0, abs=1e-4)


def test_random_guesses_follow_the_seed():
    random = np.random.default_rng(0)
    truth = {"image": random.uniform(size=(3, 2, 8, 8, 1)).astype(np.float32)}
    public = random.uniform(size=(50, 8, 8, 1)).astype(np.float32)
    found = [
        baselines.guesses(truth, public, seed)["random_image"] for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("attack", ["analytic", "recursive"])
def test_closed_forms_do_not_claim_to_adapt(attack):
    settings = Config(attack=attack, defense=("prune:.9",), defense_known=True)
    told = report.threat_model(resolve(settings), attack)
    assert told["defense_adaptive"].startswith("no: known")
