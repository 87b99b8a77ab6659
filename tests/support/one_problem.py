"""One small problem on whatever devices there are, saved by the first process.

    python one_problem.py FILE.npz [COORDINATOR PROCESSES PROCESS]

start, value, gradient: the first iterate of every trial, `[T, R, ...]`, and its cosine
distance with its gradient. iterates: the three after it, `[T, R, 3, ...]`. psnr: `[T]`
dB, of the best restarts of a run of STEPS steps. devices: how many there were.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import attacks, candidates, driver, matching
from invertjax.cli import processes
from invertjax.distances import cosine
from invertjax.priors import none
from support import toy

TARGETS, RESTARTS, STEPS = 6, 2, 300


def main(file, coordinator=None, *numbers):
    if coordinator is not None:
        count, index = map(int, numbers)
        processes.join(processes.Place(coordinator, count, index))
    truth = [toy.batch(seed) for seed in range(TARGETS)]
    rows = [trial(toy.init(10 + i), batch) for i, batch in enumerate(truth)]
    trials = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    keys = jax.random.split(jax.random.key(0), (TARGETS, RESTARTS))
    program = driver.build(watched, None, trials, keys, width=TARGETS)
    results = driver.run(program, None, trials, keys).results
    found = results.batch
    best = found.pop("image")[range(TARGETS), results.loss.argmin(1)]
    wanted = np.stack([batch["image"] for batch in truth])
    error = np.mean((best - wanted) ** 2, axis=(1, 2, 3, 4))
    found["psnr"] = -10 * np.log10(error)
    if processes.is_first():
        np.savez(file, devices=len(jax.devices()), **found)
    processes.parting(0)


@jax.jit
def share(params, batch):
    return toy.at(params)(batch)


def trial(params, batch):
    update = jax.device_get(share(params, batch))
    return {"params": params, "label": batch["label"], "update": update}


class Watched(NamedTuple):
    """An attack's state now and at its start."""

    best_loss: jax.Array
    now: matching.State
    start: matching.State


def watched(shared, trial):
    """An attack whose result also says where it started and how it went on."""
    del shared
    client = toy.at(trial["params"])
    guess = candidates.pixels((1, *toy.SHAPE), trial["label"])
    attack = attacks.inverting_gradients(
        client, trial["update"], guess, steps=STEPS, total_variation=1e-3
    )
    distance = matching.objective(client, trial["update"], guess, cosine, none)

    def init(key):
        start = attack.init(key)
        return Watched(start.best_loss, start, start)

    def advance(state, n):
        now = attack.advance(state.now, n)
        return Watched(now.best_loss, now, state.start)

    def result(state):
        start, z = state.start, state.start.z
        value, gradient = jax.value_and_grad(distance)(z, jnp.zeros(()))
        after = jax.lax.map(lambda n: attack.advance(start, n).z, jnp.arange(1, 4))
        found = attack.result(state.now)
        batch = {"start": z["image"], "iterates": after["image"]}
        batch |= {"value": value, "gradient": gradient["image"]}
        return found._replace(batch={"image": found.batch["image"], **batch})

    return attack._replace(init=init, advance=advance, result=result)


if __name__ == "__main__":
    main(*sys.argv[1:])
