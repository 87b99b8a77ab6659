"""A PyTorch module and what PyTorch saves of it, from flags to an attack."""

import jax
import numpy as np
import pytest
from support import cli, own_models

from invertjax import clients
from invertjax.cli import arrays

torch = pytest.importorskip("torch", reason="needs invertjax[torch]")
pytest.importorskip("torchax", reason="needs invertjax[torch]")

cheap_compilation = cli.cheap_compilation  # a fixture

ATTACK = ("--attack=inverting_gradients", "--steps=2")


class Net(torch.nn.Module):
    def __init__(self, image_shape, num_classes):
        super().__init__()
        height, width, channels = image_shape
        self.norm = torch.nn.BatchNorm2d(channels)
        self.dense = torch.nn.Linear(height * width * channels, num_classes)

    def forward(self, images):
        return self.dense(self.norm(images).flatten(1))


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setattr(own_models, "Net", Net, raising=False)
    torch.manual_seed(0)


def model(*others):
    return ("--model=support.own_models:Net", *others)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_state_dict_and_its_gradient(mode, tmp_path):
    """Under PyTorch's names, with the running statistics among the params."""
    net = Net((8, 8, 3), 10)
    images = cli.inputs("--image_size=8", "--targets=1").truth["image"][0]
    tensors = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    net(3 * tensors)  # the statistics move
    net.train(mode == "train")
    logits = net(tensors) if mode == "eval" else None
    state = {name: x.clone().numpy() for name, x in net.state_dict().items()}
    logits = net(tensors) if logits is None else logits
    torch.nn.functional.cross_entropy(logits, torch.tensor([4])).backward()
    update = {name: x.grad.numpy() for name, x in net.named_parameters()}
    assert "norm.num_batches_tracked" in state
    for name, held in {"params": state, "update": update}.items():
        arrays.save(str(tmp_path / f"{name}.safetensors"), held)
    flags = cli.own_flags(tmp_path, "safetensors")
    found = cli.ready(*model(f"--norm_mode={mode}"), *flags, *ATTACK)
    situation, target = found.prepared.situation, found.prepared.target
    batch = {"image": images, "label": np.array([4])}
    params = situation.shared["params"]
    again = clients.gradient(target.loss_fn)(params, batch, jax.random.key(0))
    for name, wanted in update.items():
        np.testing.assert_allclose(again[name], wanted, rtol=1e-3, atol=1e-5)
    assert situation.trials["label"].tolist() == [[4]]


def test_a_module_is_one_network(tmp_path, capsys):
    data = ("--image_size=8", "--targets=2", "--nonull_control", *ATTACK)
    flags = model("--norm_mode=train", *data)
    line = cli.refused(capsys, tmp_path / "run", *flags, "--networks=per_target")
    assert "--networks=per_target" in line and "is one network" in line
    line = cli.refused(capsys, tmp_path / "run", *model(*data))
    assert "has batch norms" in line and "--norm_mode=train" in line
    out = tmp_path / "run"
    assert cli.run(*flags, f"--workdir={out}") == 0
    assert len(cli.rows(out)) == 2
