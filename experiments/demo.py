"""The main job in two minutes: four photographs, one gradient, several defenses.

    python -m experiments.demo

A client computes the gradient of an untrained network on a batch of four photographs
and shares it, plain or defended. The engine reconstructs the batch from what was
shared. Writes demo.png and demo.json into --workdir, after every setting.
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

import models
from experiments import baselines, data, defense_flags, report, startup
from invertjax import (
    attacks,
    candidates,
    clients,
    defenses,
    distances,
    driver,
    losses,
    metrics,
)


class Setting(NamedTuple):
    """One row of the picture; `known`: the attacker knows of the defense."""

    title: str
    defense: tuple[str, ...] = ()
    known: bool = False


# From no defense to the strongest.
SETTINGS = (
    Setting("no defense"),
    Setting("noise 0.01", ("gaussian:0.01",)),
    Setting("prune 99%", ("prune:0.99",)),
    Setting("prune 99%, known", ("prune:0.99",), known=True),
    Setting("noise 0.1", ("gaussian:0.1",)),
)


def run(steps: int, seed: int, on_steps: Callable, on_result: Callable) -> None:
    """Attacks every setting.

    Args:
      steps: iterations of the attack.
      seed: of network, noise and attack.
      on_steps: told `driver.Progress`, once in a while.
      on_result: told `(setting, score, images)` as each is there.
    """
    held = data.load("photos", "test", limit=4)
    batch = {"image": jnp.asarray(held.images), "label": jnp.asarray(held.labels)}
    net = models.build(
        "cnn",
        image_shape=held.images.shape[1:],
        num_classes=held.num_classes,
        activation="gelu",
    )
    key = jax.random.key(seed)
    params, buffers = jax.jit(net.init)(key)
    client = clients.gradient(
        losses.classification(lambda p, images: net.apply(p, buffers, images, True)[0])
    )
    for known in (False, True):
        settings = [setting for setting in SETTINGS if setting.known == known]
        _attack(settings, client, params, batch, steps, key, on_steps, on_result)


def _attack(settings, client, params, batch, steps, key, on_steps, on_result):
    """One compiled program for all settings of an attacker's knowledge."""
    distance = distances.cosine
    if settings[0].known:
        distance = distances.masked(distance)
    noise_key, attack_key = jax.random.split(jax.random.fold_in(key, 1))

    def make_attack(params, update):
        return attacks.inverting_gradients(
            clients.at(client, params, key),
            update,
            candidates.pixels(batch["image"].shape, batch["label"]),
            steps=steps,
            distance=distance,
        )

    def share(setting):
        specs = [defense_flags.parse(text) for text in setting.defense]
        defended = defenses.defend(client, defense_flags.chained(specs))
        return jax.device_get(jax.jit(defended)(params, batch, noise_key))

    updates = [share(setting) for setting in settings]
    updates = jax.tree.map(lambda *leaves: np.stack(leaves), *updates)
    keys = jax.random.split(attack_key, (len(settings), 1))
    program = driver.build(make_attack, params, updates, keys, width=1)

    def on_group(rows, results):
        found = jax.tree.map(lambda leaf: leaf[0], driver.best(results)).batch
        score = metrics.score(found, batch)
        images = np.clip(np.asarray(found["image"])[score["order"]], 0, 1)
        on_result(settings[rows[0]], score, images)

    driver.run(program, params, updates, keys, on_chunk=on_steps, on_group=on_group)


class _Record:
    """What is there so far: written after every setting, printed at the end."""

    def __init__(self, out: pathlib.Path, held, null: float):
        self.out, self.held, self.null = out, held, null
        self.scores, self.images = {}, {}

    def add(self, setting: Setting, score: dict, images: np.ndarray) -> None:
        self.scores[setting], self.images[setting] = score, images
        rows = [("original", self.held.images, list(self.held.class_names[:4]))]
        for done in filter(self.scores.get, SETTINGS):
            captions = [f"{value:.1f} dB" for value in self.scores[done]["psnr"]]
            rows.append((done.title, self.images[done], captions))
        report.grid(rows).save(self.out / "demo.png")
        content = {s.title: {**s._asdict(), **self.scores[s]} for s in self.scores}
        content["mean image"] = {"psnr": self.null}
        (self.out / "demo.json").write_text(json.dumps(content, indent=2))

    def text(self) -> str:
        header = ("defense", "PSNR dB", "min", "max", "SSIM", "verdict")
        lines = []
        for setting in filter(self.scores.get, SETTINGS):
            psnr = self.scores[setting]["psnr"]
            verdict = report.verdict(float(np.mean(psnr)), self.null, "known")
            numbers = [np.mean(psnr), min(psnr), max(psnr)]
            ssim = np.mean(self.scores[setting]["ssim"])
            cells = [f"{value:.1f}" for value in numbers]
            lines.append((setting.title, *cells, f"{ssim:.2f}", verdict.split(":")[0]))
        lines.append(("(mean of other images)", f"{self.null:.1f}", *[""] * 4))
        return report.table(lines, header)


GIVEN = """The attacker was given one client's update, the model (untrained), the labels
and the batch size; not the images, and of the defense only where it says known. What
is not reconstructed here may still fall to a stronger attack."""


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    out, steps, seed = pathlib.Path(_WORKDIR.value), _STEPS.value, _SEED.value
    startup.quiet_and_cached()
    out.mkdir(parents=True, exist_ok=True)
    held = data.load("photos", "test", limit=4)
    public = data.load("photos", "train", limit=256).images
    guesses = baselines.guesses({"image": held.images[None]}, public, seed)
    record = _Record(out, held, guesses["mean_image"]["psnr_mean"])
    with tqdm(
        total=len(SETTINGS) * steps, unit="it", desc="inverting", disable=None
    ) as bar:

        def on_steps(progress):
            settled = len(record.scores) * steps
            bar.update(settled + progress.done % steps - bar.n)

        def on_result(setting, score, images):
            record.add(setting, score, images)
            bar.update(len(record.scores) * steps - bar.n)

        run(steps, seed, on_steps, on_result)
    print(record.text())
    print(GIVEN)
    print(f"Picture: {out / 'demo.png'}")


if __name__ == "__main__":  # flags here, so that tests may import this beside others
    _WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder of the results.")
    _STEPS = flags.DEFINE_integer("steps", 600, "Iterations.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Of network and attack.", lower_bound=0)
    app.run(main)
