"""One line for a reader who is not an engineer."""

import pytest

from invertjax.auditing.verdicts import verdict, verdict_blind


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
    line = verdict(psnr, null, "known")
    assert line.startswith(says)
    assert ("labels were given" in line) == says.startswith("LEAKS")
    assert "labels were given" not in verdict(psnr, null, "inferred")


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
    assert says in verdict_blind(fit)
    assert "dB" not in verdict_blind(fit)
