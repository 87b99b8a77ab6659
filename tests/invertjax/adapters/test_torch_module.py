"""PyTorch: gradients are those of the framework's own."""

from concurrent import futures

import jax
import numpy as np
import pytest

import invertjax
from invertjax import adapters, clients

torch = pytest.importorskip("torch", reason="needs invertjax[torch]")
pytest.importorskip("torchax", reason="needs invertjax[torch]")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 3, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(3, momentum=0.5)
        self.frozen = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.dropout = torch.nn.Dropout(0.5)
        self.dense = torch.nn.Linear(48, 5)

    def forward(self, images):
        features = torch.tanh(self.norm(self.conv(images)) * self.frozen)
        return self.dense(self.dropout(features.flatten(1)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(4, 4, 4, 1)).astype(np.float32)
    return {"image": image, "label": np.array([0, 3, 1, 4])}


def tensors(batch):
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
    return images, torch.from_numpy(batch["label"])


@pytest.fixture
def module(batch):
    torch.manual_seed(0)
    made = Net()
    made(4 * tensors(batch)[0])  # running statistics that are not the first
    return made


@pytest.mark.parametrize("train", (True, False))
def test_gradients_are_the_framework_s_own(batch, module, train):
    loss_fn, params = adapters.from_torch(module).loss(train=train)
    found = jax.jit(clients.gradient(loss_fn))(params, batch, jax.random.key(0))
    module.train(train).dropout.eval()
    images, labels = tensors(batch)
    torch.nn.functional.cross_entropy(module(images), labels).backward()
    wanted = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    assert set(found) == set(wanted) and "frozen" not in found
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_statistics_move_in_training_and_the_module_stays(batch, module):
    adapted = adapters.from_torch(module)
    before = module.norm.running_mean.clone().numpy()
    apply = jax.jit(adapted.apply, static_argnums=3)
    _, after = apply(adapted.params, adapted.buffers, batch["image"], True)
    _, same = apply(adapted.params, adapted.buffers, batch["image"], False)
    np.testing.assert_array_equal(module.norm.running_mean, before)
    np.testing.assert_array_equal(same["norm.running_mean"], before)
    module.train()(tensors(batch)[0])
    for name in ("running_mean", "running_var"):
        wanted = getattr(module.norm, name)
        np.testing.assert_allclose(after[f"norm.{name}"], wanted, rtol=1e-5)
    assert after["norm.num_batches_tracked"] == 2
    with pytest.raises(ValueError, match="train=True"):
        adapted.loss()


def test_dropout_follows_its_key(batch, module):
    adapted = adapters.from_torch(module)

    def value(key):
        loss_fn, params = adapted.loss(train=False, dropout=key)
        return float(loss_fn(params, batch))

    keys = [None, *map(jax.random.key, (1, 2))]
    assert len({value(key) for key in keys}) == 3
    assert value(keys[1]) == value(keys[1])


def test_an_update_of_pytorch_is_read_exactly():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5))
    image = np.random.default_rng(0).uniform(size=(1, 4, 4, 1)).astype(np.float32)
    images, labels = tensors({"image": image, "label": np.array([3])})
    torch.nn.functional.cross_entropy(module(images), labels).backward()
    update = {name: p.grad.numpy() for name, p in module.named_parameters()}
    loss_fn, params = adapters.from_torch(module).loss()
    report = invertjax.audit(
        jax.random.key(0), loss_fn, params, update=update, shape=image.shape,
        attack="gauss_newton", labels=np.array([3]), num_classes=5, control=False,
    )  # fmt: skip
    found = report.arrays[0]["image"]
    np.testing.assert_allclose(found, image, atol=1e-3)


def test_threads_may_trace_one_module_at_once(batch, module):
    """As a frontier does, which trains a federation on every device."""
    adapted = adapters.from_torch(module)
    loss_fn, params = adapted.loss(train=False)
    wanted = loss_fn(params, batch)

    def traced(scale):
        def scaled(params):
            return scale * loss_fn(params, batch)

        return float(jax.jit(scaled)(params))

    with futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(traced, range(1, 33)))
    np.testing.assert_allclose(found, wanted * np.arange(1, 33), rtol=1e-5)
