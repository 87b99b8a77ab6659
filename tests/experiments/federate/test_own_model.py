"""A federation that trains a model of the reader's own."""

import json

import pytest
from support import cli, federations

cheap_compilation = cli.cheap_compilation  # a fixture
HERE = "support.own_models"
RUN = ("--image_size=8", *federations.ATTACK, *federations.ROUNDS)


def test_batch_norms_keep_their_running_statistics(tmp_path):
    """Clients do not share them: the federation uses those of the start."""
    flags = (f"--model={HERE}:Normed", "--norm_mode=eval", *RUN)
    flags = (*flags, f"--loss={HERE}:smoothed", "--local_steps=2", "--targets=1")
    assert federations.run(*flags, f"--workdir={tmp_path / 'run'}") == 0
    rows = cli.rows(tmp_path / "run")
    assert [row["round"] for row in rows] == [0, 2, 4]
    assert rows[-1]["psnr_mean"] is not None
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    summary = cli.summary(tmp_path / "run")
    assert "running statistics" in summary["threat_model"]["batch_norm"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {"model", "loss"} <= set(config["inputs"])


@pytest.mark.parametrize(
    "flags, says",
    [
        (("Normed",), ["has batch norms", "--norm_mode=eval"]),
        (("Normed", "--norm_mode=train"), ["--norm_mode=train", "expected eval"]),
        (("one_logit", f"--loss={HERE}:is_first"), ["(2, 1)", "logits of shape"]),
        (("Plain", "--width=3"), ["--width=3", "is your own"]),
        (("Plain", "--defense=soteria:0.5"), ["--defense=soteria:0.5", "last layer"]),
    ],
)
def test_what_does_not_fit_is_refused(flags, says, tmp_path, capsys):
    name, *others = flags
    code = federations.run(
        f"--model={HERE}:{name}", *others, *RUN, f"--workdir={tmp_path / 'run'}"
    )
    line = capsys.readouterr().err
    assert code == 2 and line.startswith("error: ") and line.count("\n") == 1
    assert all(fragment in line for fragment in says), line
    assert not (tmp_path / "run").exists()
