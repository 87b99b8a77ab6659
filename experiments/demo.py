"""The main job in two minutes: four photographs, one gradient, several defenses.

    python -m experiments.demo

A client computes the gradient of an untrained network on a batch of four photographs
and shares it, plain or defended. The engine reconstructs the batch from what was
shared. Writes demo.png and demo.json into --workdir, after every setting.
"""

import json
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

import models
from experiments import data
from experiments.audit import baselines, report
from experiments.settings import defense_flags
from invertjax import (
    attacks,
    candidates,
    clients,
    defenses,
    distances,
    driver,
    labels,
    losses,
    metrics,
)
from invertjax.base import Batch, Client, Params
from invertjax.cli import startup


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
    public = data.load("photos", "train", limit=256)
    net = models.build(
        "cnn",
        image_shape=held.images.shape[1:],
        num_classes=held.num_classes,
        activation="gelu",
    )
    key = jax.random.key(seed)
    params, buffers = jax.jit(net.init)(key)
    loss_fn = losses.classification(
        lambda params, images: net.apply(params, buffers, images, True)[0]
    )
    scene = _Scene(
        clients.gradient(loss_fn),
        params,
        {"image": jnp.asarray(held.images), "label": jnp.asarray(held.labels)},
        {"image": public.images[None], "label": public.labels[None]},
        held.num_classes,
    )
    for known in (False, True):
        settings = [setting for setting in SETTINGS if setting.known == known]
        _attack(scene, settings, steps, key, on_steps, on_result)


class _Scene(NamedTuple):
    """The client, what it trains on, and public images `[1, P, ...]`."""

    client: Client
    params: Params
    batch: Batch
    public: Batch
    num_classes: int

    def share(self, setting, key):
        """The update that the client shares under a defense."""
        specs = defense_flags.specs(setting.defense)
        defended = defenses.defend(self.client, defense_flags.chained(specs))
        return jax.device_get(jax.jit(defended)(self.params, self.batch, key))

    def label_recall(self, update, key):
        """Share of the labels that can be read off an update (not used below)."""
        size = len(self.batch["label"])

        @jax.jit
        def read(update):
            counts = labels.recover(
                key,
                self.client,
                self.params,
                update,
                batch_size=size,
                num_classes=self.num_classes,
                probe_batches=self.public,
            )
            guess = labels.from_counts(counts, size)
            return metrics.label_recall(self.batch["label"], guess, self.num_classes)

        return float(read(update))


def _attack(scene, settings, steps, key, on_steps, on_result):
    """One compiled program for all settings of an attacker's knowledge."""
    noise_key, attack_key, probe_key = jax.random.split(jax.random.fold_in(key, 1), 3)
    distance = distances.cosine
    if settings[0].known:
        distance = distances.masked(distance)

    def make_attack(params, update):
        return attacks.inverting_gradients(
            clients.at(scene.client, params, key),
            update,
            candidates.pixels(scene.batch["image"].shape, scene.batch["label"]),
            steps=steps,
            total_variation=1e-2,  # a smooth activation needs less than the default
            distance=distance,
        )

    rows, recalls = [], []
    for i, setting in enumerate(settings):
        rows.append(scene.share(setting, jax.random.fold_in(noise_key, i)))
        recalls.append(scene.label_recall(rows[-1], jax.random.fold_in(probe_key, i)))
    updates = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    keys = jax.random.split(attack_key, (len(settings), 1))
    program = driver.build(make_attack, scene.params, updates, keys)
    clock = [time.perf_counter()]

    def on_group(rows, results):
        clock.append(time.perf_counter())
        seconds = (clock[-1] - clock[-2]) / len(rows)  # they ran side by side
        batches = driver.best(results).batch
        for i, row in enumerate(rows):
            found = jax.tree.map(lambda leaf, i=i: leaf[i], batches)
            score = metrics.score(found, scene.batch)
            images = np.clip(np.asarray(found["image"])[score["order"]], 0, 1)
            score = {**score, "labels": recalls[row], "seconds": seconds}
            on_result(settings[row], score, images)

    driver.run(
        program, scene.params, updates, keys, on_chunk=on_steps, on_group=on_group
    )


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
        header = ("defense", "PSNR dB", "min", "max", "SSIM", "labels*", "s", "verdict")
        lines = []
        for setting in filter(self.scores.get, SETTINGS):
            score = self.scores[setting]
            psnr = score["psnr"]
            verdict = report.verdict(float(np.mean(psnr)), self.null, "known")
            numbers = [np.mean(psnr), min(psnr), max(psnr)]
            cells = [f"{value:.1f}" for value in numbers]
            cells += [f"{np.mean(score['ssim']):.2f}", f"{score['labels']:.0%}"]
            cells += [f"{score['seconds']:.0f}", verdict.split(":")[0]]
            lines.append((setting.title, *cells))
        lines.append(("(mean of other images)", f"{self.null:.1f}", *[""] * 6))
        return report.table(lines, header)


GIVEN = """The attacker was given one client's update, the model (untrained), the labels
and the batch size; not the images, and of the defense only where it says known. What
is not reconstructed here may still fall to a stronger attack.
* share of the labels that the update gives away by itself, with public images."""


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
            under_way = progress.done % steps * len(progress.losses)
            bar.update(settled + under_way - bar.n)

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
