"""What is proven of what the server sees of a round."""

import pytest
from support import cli
from support.federations import run

cheap_compilation = cli.cheap_compilation  # a fixture


@pytest.mark.slow  # 8 s; tests of `exact` have aggregates, too
def test_a_mean_of_clients_of_unequal_size_is_taken_apart(tmp_path):
    """Secure aggregation rounds every client's update to fixed point."""
    out = tmp_path / "out"
    args = ("--model=mlp", "--width=96", "--dataset=photos", "--image_size=8")
    args += ("--normalise=none", "--attack=peeling", "--sees=mean", "--batch_size=2")
    args += ("--clients=5", "--participants=3", "--partition=dirichlet:0.5")
    args += ("--rounds=1", "--audit_rounds=0", f"--workdir={out}")
    assert run(*args) == 0
    row = cli.rows(out)[0]
    assert row["images"] == 6 and row["label_recall"] == 1
    assert row["certified_share"] == row["recovered_share"] == 1
    assert row["false_certificates"] == 0 and row["psnr_min"] > 60
