"""One line for a reader who is not an engineer."""

import pytest

from invertjax.auditing.verdicts import Evidence, verdict, verdict_blind


@pytest.mark.parametrize(
    "psnr, null, says",
    [
        (60.0, 12.0, "LEAKS: the update gives the images back almost exactly"),
        (31.0, 40.0, "NOT RECONSTRUCTED"),  # a guess does better
        (31.0, 29.0, "NOT RECONSTRUCTED"),
        (33.0, 29.0, "LEAKS: the update gives the images back almost exactly"),
        (30.0, 12.0, "LEAKS: the update gives the images back almost exactly"),
        (29.9, 12.0, "LEAKS: the reconstructed images are recognisable"),
        (20.0, 12.0, "LEAKS: the reconstructed images are recognisable"),
        (19.9, 12.0, "LEAKS IN PART"),
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


FOUND = Evidence(fit=1e-2, fit_truth=1e-2)
MISSED = Evidence(fit=0.5, fit_truth=1e-2)


@pytest.mark.parametrize(
    "evidence, says",
    [
        (FOUND, "NOT RECONSTRUCTED by this attack: it explains the update as well"),
        (MISSED, "NOT FITTED: the true images explain the update better"),
        (MISSED._replace(falling=True), "NO VERDICT: the objective still fell"),
        (FOUND._replace(falling=True), "NOT RECONSTRUCTED"),
        (Evidence(falling=True), "NO VERDICT: the objective still fell"),
        (FOUND._replace(interrupted=True), "NO VERDICT: the attack was interrupted"),
        (FOUND._replace(closed_form="analytic"), "NO VERDICT: the attack analytic"),
    ],
)
def test_an_attack_that_failed_is_no_update_that_is_safe(evidence, says):
    line = verdict(12.0, 13.0, "known", evidence)
    assert line.startswith(says)
    safe = line.startswith("NOT RECONSTRUCTED")
    assert ("says nothing about what the update gives away" in line) != safe
    assert verdict(60.0, 13.0, "known", evidence).startswith("LEAKS")
    partly = verdict(25.0, 13.0, "known", evidence)
    assert partly.startswith("LEAKS")
    assert ("analytic reads" in partly) == bool(evidence.closed_form)


@pytest.mark.parametrize(
    "fit, says",
    [
        (1e-6, "almost completely"),
        (1e-2, "in part"),
        (0.9, "NOT FITTED"),
        (None, "FAILED"),
    ],
)
def test_verdicts_without_the_truth(fit, says):
    line = verdict_blind(Evidence(fit=fit))
    assert says in line and "dB" not in line
    assert "nothing was recovered" not in line and "faithful" not in line
    if fit is not None:
        assert f"{fit:.1e}" in line  # what it rests on


def test_an_unfinished_attack_without_the_truth_has_no_verdict():
    for unfinished in ({"interrupted": True}, {"falling": True}):
        line = verdict_blind(Evidence(fit=0.9, **unfinished))
        assert line.startswith("NO VERDICT")
        assert "in part" in verdict_blind(Evidence(fit=0.01, **unfinished))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_images_that_are_all_proven_need_no_truth(share):
    evidence = Evidence(fit=1e-14, certified=share)
    said = verdict_blind(evidence)
    assert said.startswith("LEAKS: every image is certified") == (share == 1)
    assert ("look at the picture" in said) == (share < 1)
