"""Runs `python -m experiments.reconstruct` in this process."""

import json
import os
import pathlib
import re
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags
from jax.experimental.compilation_cache import compilation_cache

import models
from experiments import data
from experiments.audit import prepare
from experiments.audit import run as audit
from experiments.reconstruct import __main__ as reconstruct
from experiments.settings import settings
from invertjax import clients, losses
from invertjax.cli import arrays as updates
from invertjax.cli import defense_text, setting
from invertjax.driver import Cache

FILES = {
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "reconstructions.npz",
    "grid.png",
}


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(tmp_path_factory):
    """Little optimised, and once for each program: compilation is most of the time."""
    options = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in options}
    for wanted in (options, before):
        for name, value in wanted.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if wanted is options:
            yield


def run(*args: str) -> int:
    """`experiments.reconstruct`: the exit code; it prints to stdout and stderr."""
    return run_script(reconstruct, *args)


def run_script(script: Any, *args: str) -> int:
    """The exit code of any of them, a module of experiments."""
    cache = {"JAX_COMPILATION_CACHE_DIR": os.devnull}  # none of the user's
    with mock.patch.dict(os.environ, cache):
        try:
            return script.main([script.__name__, *args])
        finally:
            jax.config.update("jax_enable_x64", False)


def given(*args: str) -> dict[str, Any]:
    """The settings that flags give, not yet checked."""
    values = absl_flags.FlagValues()
    for record in settings.RECORDS:
        setting.define(record, values)
    values(["reconstruct", *args])
    return settings.given(values)


def resolved(**given: Any) -> settings.Settings:
    """Settings in which defenses may be texts."""
    if "defense" in given:
        given["defense"] = tuple(map(defense_text.parse, given["defense"]))
    return settings.resolve(given)


def ready(*args: str) -> prepare.Ready:
    """What such flags prepare."""
    return prepared(settings.resolve(given(*args)))


def prepared(chosen: settings.Settings, cache: Cache | None = None) -> prepare.Ready:
    """What settings prepare."""
    return audit.ready(chosen, cache=cache or Cache())


def inputs(*args: str) -> Any:
    """The images that such flags read."""
    data, victim, _, clients, _, run = settings.resolve(given(*args))
    return prepare.read(data, victim, clients, run, cache=Cache())


def flags(settings: dict) -> list[str]:
    """The flags of settings, as they are in config.json."""
    given = {name: value for name, value in settings.items() if value is not None}
    defenses = [f"--defense={text}" for text in given.pop("defense")]
    if "image_shape" in given:
        given["image_shape"] = ",".join(map(str, given["image_shape"]))
    return [*defenses, *(f"--{name}={value}" for name, value in given.items())]


def summary(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def rows(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(workdir / "reconstructions.npz", allow_pickle=False) as archive:
        return dict(archive)


def own_update(path: pathlib.Path) -> np.ndarray:
    """What the reader's code would save, and the image that it should not give away."""
    net = models.build("mlp", image_shape=(8, 8, 3), num_classes=10, width=9)
    params, buffers = net.init(jax.random.key(3))
    params = jax.tree.map(lambda leaf: leaf.astype(float), params)
    loss_fn = losses.classification(lambda p, x: net.apply(p, buffers, x, True)[0])
    image = data.load("photos", "test", image_size=8, limit=1).images
    batch = {"image": jnp.asarray(image, float), "label": jnp.array([7])}
    update = clients.gradient(loss_fn)(params, batch, jax.random.key(0))
    np.savez(path / "update.npz", **updates.flat(update))
    np.savez(path / "params.npz", **updates.flat(params))
    return image


def own_flags(path: pathlib.Path, suffix: str = "npz") -> tuple[str, ...]:
    files = (f"--{name}={path / name}.{suffix}" for name in ("update", "params"))
    return (*files, "--batch_size=1", "--image_shape=8,8,3")


OWN_LOSS = """
import jax, jax.numpy as jnp

def logits(params, images):
    (w0, b0), (w1, b1) = params["layers"]
    hidden = jnp.tanh(images.reshape(len(images), -1) @ w0 + b0[None])
    return hidden @ w1 + b1[None]

def loss(params, batch):  # labels are probabilities
    scores = jax.nn.log_softmax(logits(params, batch["image"]))
    return -jnp.mean(jnp.sum(scores * batch["label"], -1))

def not_finite(params, batch):
    return jnp.sqrt(-1 - loss(params, batch))

def each(params, batch):
    return logits(params, batch["image"]).sum(-1)

def broken(params, batch):
    return params["no such layer"]

constant = 3
"""


def own_loss(path: pathlib.Path) -> tuple[str, ...]:
    """Flags of an update whose params are a list of pairs, and a module of losses."""
    (path / "own_loss.py").write_text(OWN_LOSS)
    (path / "raises.py").write_text("1 / 0")
    random = np.random.default_rng(0)
    shapes = {"0/0": (192, 5), "0/1": (5,), "1/0": (5, 4), "1/1": (4,)}
    for name in ("update", "params"):
        arrays = {f"layers/{k}": 0.1 * random.normal(size=v) for k, v in shapes.items()}
        updates.save(str(path / f"{name}.safetensors"), arrays)
    flags = (*own_flags(path, "safetensors"), "--num_classes=4", "--labels=joint")
    return (*flags, "--attack=inverting_gradients", "--steps=2", "--restarts=2")


def refused(capsys, workdir: pathlib.Path, *args: str) -> str:
    """The one line that a run on bad input leaves on stderr; nothing else is left, but
    for an estimate where the update itself is the fault."""
    before = _files(workdir.parent)
    capsys.readouterr()
    code = run(*args, f"--workdir={workdir}")
    printed = capsys.readouterr()
    assert code == 2, printed
    assert re.fullmatch(r"(Estimate: .*\n)?", printed.out)
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert "None" not in printed.err
    assert _files(workdir.parent) == before
    return printed.err


def _files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
