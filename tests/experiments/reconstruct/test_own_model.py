"""`--model=module:name` and `--loss` beside it, from flags to files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import cli, own_models

from experiments.reconstruct.resumed import SUMMARY
from invertjax import adapters, clients
from invertjax.cli import arrays

cheap_compilation = cli.cheap_compilation  # a fixture

HERE = "support.own_models"
NORMED, PLAIN = f"--model={HERE}:Normed", f"--model={HERE}:Plain"
DATA = ("--image_size=8", "--targets=2", "--dataset=photos")
ATTACK = ("--attack=inverting_gradients", "--steps=2", "--nonull_control")


def of(name):
    return f"{HERE}:{name}"


@pytest.fixture(scope="module")
def both(tmp_path_factory, cheap_compilation):
    """The same run in both modes of its batch norm."""
    path = tmp_path_factory.mktemp("runs")
    for mode in ("train", "eval"):
        flags = (NORMED, *DATA, *ATTACK, f"--norm_mode={mode}")
        assert cli.run(*flags, f"--workdir={path / mode}") == 0
    return path


def test_both_modes_of_a_batch_norm_are_attacked_and_reported(both):
    found = {mode: cli.summary(both / mode) for mode in ("train", "eval")}
    for mode, says in (("train", "statistics of the batch"), ("eval", "running")):
        assert says in found[mode]["threat_model"]["batch_norm"]
        assert SUMMARY.keys() <= found[mode].keys()
    rms = [[row["update_rms"] for row in cli.rows(both / mode)] for mode in found]
    assert not np.allclose(*rms, rtol=0.01)
    # Fresh weights for every target, as of any built-in network.
    config = json.loads((both / "train" / "config.json").read_text())
    assert set(config["inputs"]) == {"model", "split", "train_split"}
    assert config["settings"]["model"] == of("Normed")


def test_code_that_has_changed_is_not_gone_on_with(both, capsys):
    config = both / "train" / "config.json"
    held = config.read_text()
    now = json.loads(held)
    now["inputs"]["model"] = "0" * 64
    config.write_text(json.dumps(now))
    flags = (NORMED, *DATA, *ATTACK, "--norm_mode=train", "--resume")
    line = cli.refused(capsys, both / "train", *flags)
    config.write_text(held)
    assert "--model" in line


def test_networks_are_fresh_where_the_code_makes_them():
    fresh, fixed = (
        cli.ready(f"--model={of(name)}", *DATA, *ATTACK).prepared.situation
        for name in ("Plain", "fixed")
    )
    kernels = fresh.trials["params"]["hidden"]["kernel"]
    assert len(kernels) == 2 and not np.array_equal(*kernels)
    assert "params" not in fixed.trials
    own = own_models.Plain((8, 8, 3), 8, rngs=nnx.Rngs(3))
    np.testing.assert_array_equal(
        fixed.shared["params"]["hidden"]["kernel"], own.hidden.kernel[...]
    )


@pytest.mark.parametrize(
    "name, needs", [("Linen", "flax"), ("stateful", "equinox"), ("haiku", "haiku")]
)
def test_every_framework_has_both_modes_and_fresh_weights(name, needs):
    pytest.importorskip(needs, reason="an extra of the tests")
    rms = []
    for mode in ("train", "eval"):
        flags = (f"--model={of(name)}", f"--norm_mode={mode}", *DATA, *ATTACK)
        situation = cli.ready(*flags, "--batch_size=2").prepared.situation
        kernels = max(jax.tree.leaves(situation.trials["params"]), key=np.size)
        assert len(kernels) == 2 and not np.array_equal(*kernels)
        rms.append(situation.trials["rms"])
    assert not np.allclose(*rms, rtol=0.01)


def test_the_loss_is_the_clients():
    """By hand, at the network that is the same for all targets."""
    for name, loss in (("fixed", "smoothed"), ("fixed", None)):
        own = () if loss is None else (f"--loss={of(loss)}",)
        found = cli.ready(f"--model={of(name)}", *own, *DATA, *ATTACK)
        situation = found.prepared.situation
        params = situation.shared["params"]
        batch = {name: leaf[0] for name, leaf in situation.truth.items()}
        adapted = own_models.fixed((8, 8, 3), 8)
        given = () if loss is None else (own_models.smoothed,)
        wanted = clients.gradient(adapted.loss(*given)[0])(
            params, batch, jax.random.key(0)
        )
        update = jax.tree.map(lambda leaf: leaf[0], situation.trials["update"])
        for one, other in zip(*map(jax.tree.leaves, (update, wanted)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["smoothed", None])
def test_the_recursion_finds_the_blocks_of_ones_own_model(loss, tmp_path):
    own = () if loss is None else (f"--loss={of(loss)}",)
    attack = ("--attack=recursive", "--nonull_control", "--targets=1")
    flags = (PLAIN, *own, *DATA, *attack, f"--workdir={tmp_path / 'run'}")
    assert cli.run(*flags) == 0
    assert cli.summary(tmp_path / "run")["psnr_min"] > 60


def test_outputs_that_are_no_logits_have_a_loss_of_their_own():
    model = f"--model={of('one_logit')}"
    found = cli.ready(model, f"--loss={of('is_first')}", *DATA, *ATTACK)
    assert found.prepared.situation.updates == 2


def test_a_victim_is_trained_by_its_loss():
    flags = (PLAIN, f"--loss={of('smoothed')}", *DATA, *ATTACK, "--train_steps=2")
    found = cli.ready(*flags)
    assert found.facts["trained_steps"] == 2
    assert "params" not in found.prepared.situation.trials


def saved(path, mode):
    """The update of a model with a batch norm whose statistics are not the first."""
    model = own_models.Normed((8, 8, 3), 10, rngs=nnx.Rngs(5))
    model.norm.mean[...] = jnp.array([0.3, -0.2])
    adapted = adapters.from_nnx(model)
    loss_fn, params = adapted.loss(train=mode == "train")
    images = cli.inputs("--image_size=8", "--targets=1").truth["image"][0]
    batch = {"image": images, "label": np.array([4])}
    update = clients.gradient(loss_fn)(params, batch, jax.random.key(0))
    np.savez(path / "update.npz", **arrays.flat(update))
    held = {**arrays.flat(params), **arrays.flat(adapted.buffers)}
    np.savez(path / "params.npz", **held)
    return update, batch


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_saved_update_of_ones_own_model(mode, tmp_path):
    """Running statistics may be beside the params, as in a state_dict."""
    update, batch = saved(tmp_path, mode)
    flags = (NORMED, *cli.own_flags(tmp_path), f"--norm_mode={mode}", *ATTACK[:2])
    found = cli.ready(*flags)
    target, params = found.prepared.target, found.prepared.situation.shared["params"]
    again = clients.gradient(target.loss_fn)(params, batch, jax.random.key(0))
    for one, other in zip(*map(jax.tree.leaves, (again, update)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert found.prepared.situation.trials["label"].tolist() == [[4]]


@pytest.mark.parametrize(
    "flags, says",
    [
        ((NORMED,), ["has batch norms", "--norm_mode=train", "--norm_mode=eval"]),
        ((PLAIN, "--norm_mode=train"), ["--norm_mode=train", "no batch norm"]),
        ((f"--model={of('Missing')}",), ["--model=", "module:name", "Missing"]),
        (
            (f"--model={of('fixed')}", "--networks=per_target"),
            ["--networks=per_target", "is one network"],
        ),
        (
            (PLAIN, "--defense=soteria:0.5"),
            ["--defense=soteria:0.5", "--model=", "last layer"],
        ),
        ((PLAIN, "--defense=dropout:0.5"), ["--defense=dropout:0.5", "--model="]),
        (
            (f"--model={of('Parallel')}", "--attack=recursive"),
            ["--attack=recursive", "--model=", "no single array between images"],
        ),
        (
            (PLAIN, f"--loss={of('of_a_batch')}"),
            ["--loss=", "(logits, labels)", "(params, batch)"],
        ),
        (("--model=mlp", f"--loss={of('each')}"), ["--loss=", "shape (1,)", "scalar"]),
        (("--model=mlp", f"--loss={of('missing')}"), ["--loss=", "module:function"]),
        (
            ("--model=mlp", f"--loss={of('smoothed')}", "--defense=precode:2"),
            ["--loss=", "--defense=precode:2", "cross-entropy"],
        ),
        (
            (PLAIN, f"--loss={of('picked')}", "--labels=joint"),
            ["--labels=joint", "labels of shape (1, 8)"],
        ),
    ],
)
def test_own_code_that_does_not_fit_is_refused(flags, says, tmp_path, capsys):
    small = () if any("--attack" in flag for flag in flags) else ATTACK
    line = cli.refused(capsys, tmp_path / "run", *DATA, *small, *flags)
    for fragment in says:
        assert fragment in line
