"""The main job in two minutes: four photographs, one gradient, several defenses.

    python -m experiments.demo

A client computes the gradient of an untrained network on a batch of four photographs
and shares it, plain or defended. The engine reconstructs the batch from what was
shared. Writes demo.png and demo.json into --workdir.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

import models
from experiments import baselines, data, defense_flags, report, startup
from invertjax import attacks, candidates, clients, defenses, driver, losses, metrics

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder of the results.")
_STEPS = flags.DEFINE_integer(
    "steps", 1_500, "Iterations of the attack.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of network, noise and attack.", lower_bound=0)

# From no defense to the strongest: (title, defenses in order).
SETTINGS = (
    ("no defense", ()),
    ("prune 99%", ("prune:0.99",)),
    ("noise 0.01", ("gaussian:0.01",)),
    ("noise 0.1", ("gaussian:0.1",)),
)
GIVEN = "the model, the labels, one client's update; not the images, not the defense"


def shared_updates(client, params, batch, key):
    """The client's update under each setting, `[S, ...]`."""

    def share(texts):
        specs = [defense_flags.parse(text) for text in texts]
        return defenses.defend(client, defense_flags.chained(specs))(params, batch, key)

    updates = [jax.jit(lambda texts=texts: share(texts))() for _, texts in SETTINGS]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates)


def run(steps: int, seed: int, on_chunk, on_result) -> None:
    """Attacks every setting; tells `on_result` each score and batch as it is there."""
    held = data.load("photos", "test", limit=4)
    batch = {"image": held.images, "label": jnp.asarray(held.labels)}
    shape = held.images.shape
    net = models.build("cnn", image_shape=shape[1:], num_classes=held.num_classes)
    key = jax.random.key(seed)
    params, buffers = net.init(key)
    loss_fn = losses.classification(
        lambda params, images: net.apply(params, buffers, images, True)[0]
    )
    client = clients.gradient(loss_fn)
    updates = shared_updates(client, params, batch, jax.random.fold_in(key, 1))

    def make_attack(params, update):
        return attacks.inverting_gradients(
            clients.at(client, params, jax.random.key(0)),
            update,
            candidates.pixels(shape, batch["label"]),
            steps=steps,
        )

    keys = jax.random.split(jax.random.fold_in(key, 2), (len(SETTINGS), 1))
    program = driver.build(make_attack, params, updates, keys, width=1)

    def on_group(rows, results):
        found = jax.tree.map(lambda leaf: leaf[0], driver.best(results))
        score = metrics.score(found.batch, batch)
        images = np.clip(np.asarray(found.batch["image"])[score["order"]], 0, 1)
        recall = metrics.label_recall(
            batch["label"], found.batch["label"], held.num_classes
        )
        on_result(rows[0], {**score, "label_recall": float(recall)}, images)

    driver.run(program, params, updates, keys, on_chunk=on_chunk, on_group=on_group)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    startup.quiet_and_cached()
    out = pathlib.Path(_WORKDIR.value)
    out.mkdir(parents=True, exist_ok=True)
    held = data.load("photos", "test", limit=4)
    pictures = [("original", held.images, list(held.class_names[:4]))]
    scores, clock = [], []

    with tqdm(total=0, unit="it", desc="inverting", disable=None) as bar:

        def on_chunk(progress):
            bar.total = progress.total
            bar.update(progress.done - bar.n)
            clock[:] = [progress.seconds]

        def on_result(index, score, images):
            title = SETTINGS[index][0]
            captions = [f"{value:.1f} dB" for value in score["psnr"]]
            pictures.append((title, images, captions))
            report.grid(pictures).save(out / "demo.png")
            before = sum(row["seconds"] for row in scores)
            scores.append({"setting": title, "seconds": clock[0] - before, **score})
            bar.set_postfix_str(f"{title}: {np.mean(score['psnr']):.1f} dB")

        run(_STEPS.value, _SEED.value, on_chunk, on_result)

    public = data.load("photos", "train", limit=256).images
    truth = {"image": held.images[None]}
    null = baselines.guesses(truth, public, _SEED.value)["mean_image"]["psnr_mean"]
    (out / "demo.json").write_text(json.dumps({"null": null, "rows": scores}, indent=2))
    print(_text(scores, null))
    print(f"Picture: {out / 'demo.png'}")


def _text(scores, null):
    header = ("defense", "PSNR dB", "worst", "best", "SSIM", "labels", "seconds")
    lines = [
        (
            row["setting"],
            f"{np.mean(row['psnr']):.1f}",
            f"{min(row['psnr']):.1f}",
            f"{max(row['psnr']):.1f}",
            f"{np.mean(row['ssim']):.2f}",
            f"{row['label_recall']:.0%}",
            f"{row['seconds']:.0f}",
        )
        for row in scores
    ]
    lines.append(("(mean image)", f"{null:.1f}", *[""] * 5))
    verdicts = [
        f"{row['setting']}: {report.verdict(np.mean(row['psnr']), null, 'known')}"
        for row in scores
    ]
    given = f"The attacker was given {GIVEN}."
    return "\n".join([report.table(lines, header), given, *verdicts])


if __name__ == "__main__":
    app.run(main)
