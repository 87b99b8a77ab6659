"""What an accelerator changes: precision, the engine's own choices, clients at once.

    python -m benchmarks.accelerator [--studies machine choices precision clients]

For one GPU or TPU (a CPU runs it, too). Results are printed one a line, and kept in
accelerator.json in --out after every one of them.

  machine    square matrix products a second, at each precision
  choices    `inverting_gradients`, the engine's choices in turn (see `choices`)
  precision  PSNR where client and attacker compute float32 products differently
  clients    rounds of a federation, its clients at once or one after another
"""

import argparse
import concurrent.futures
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from benchmarks import choices, peak
from benchmarks.worker import ROOT
from experiments.audit import run as audit
from experiments.settings import settings
from invertjax import clients, federated, losses
from invertjax.auditing import Watch, run
from invertjax.driver import Cache

AT_ONCE = {f"{k} at once": dict(at_once=k) for k in (1, 8, 64)}
# (model, batch, restarts), and what is compared there.
PLAN = (
    (("convnet5", 1, 1), choices.FORMS),
    (("convnet5", 1, 64), choices.FORMS),
    (("lenet", 1, 64), AT_ONCE),
    (("convnet5", 1, 64), choices.RULES),
    (("convnet5", 8, 1), choices.FORMS),
    (("convnet5", 1, 64), AT_ONCE),
    (("resnet18", 1, 8), choices.FORMS),
)

# JAX's names. The default is TF32 on NVIDIA GPUs since Ampere, bfloat16 on TPUs.
DEFAULT, FULL, SHORT = None, "highest", "bfloat16"
PAIRS = ((FULL, FULL), (DEFAULT, DEFAULT), (DEFAULT, FULL), (FULL, DEFAULT))
PAIRS += ((SHORT, FULL), (SHORT, SHORT))
ATTACKS: dict[str, dict[str, Any]] = {
    "analytic": dict(attack="analytic", model="mlp"),
    "inverting_gradients": dict(
        attack="inverting_gradients", model="cnn", activation="gelu", steps=1000
    ),
    "deep_leakage": dict(attack="deep_leakage", model="lenet", steps=600),
    "gauss_newton": dict(attack="gauss_newton", model="lenet", steps=50),
}
COMMON = dict(dataset="photos", targets=8, null_control=False, labels="known")
ROUNDS, POPULATION = 10, 32


def machine() -> Iterator[dict[str, Any]]:
    yield peak.machine()
    for name in (DEFAULT, FULL, SHORT):
        _products(name)
        pace = peak.products()["flops_per_second"]
        yield {"precision": name, "tera_flops": pace / 1e12}


def _products(name: str | None) -> None:
    """Sets how float32 products are computed: for all threads, as some compile."""
    jax.config.update("jax_default_matmul_precision", name)
    jax.clear_caches()


def engine_choices() -> Iterator[dict[str, Any]]:
    for size, alternatives in PLAN:
        yield {"size": size, **_compared(size, alternatives)}


def _compared(size: tuple[str, int, int], alternatives: dict[str, dict]) -> dict:
    """Returns milliseconds an image and iteration of every alternative, median of
    five rounds, and the megabytes that the compiler takes for it."""
    begin = time.perf_counter()

    def make(options: dict[str, Any]) -> choices.Contestant:
        return choices.Contestant(*size, count=1, steps=50, **options)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        runners = list(pool.map(make, alternatives.values()))
    compiled = time.perf_counter() - begin
    rounds = np.array(
        [[each.run() for each in runners] for _ in range(choices.ROUNDS + 1)]
    )
    medians = np.median(rounds[1:], axis=0)
    found = {
        name: [float(f"{median:.4g}"), round(each.megabytes)]
        for name, median, each in zip(alternatives, medians, runners, strict=True)
    }
    return found | {"seconds_compile": round(compiled, 1)}


def precision() -> Iterator[dict[str, Any]]:
    for name, flags in ATTACKS.items():
        for client, attacker in PAIRS:
            yield {
                "attack": name,
                "client": client or "default",
                "attacker": attacker or "default",
                **_attacked({**COMMON, **flags}, client, attacker),
            }


def _attacked(flags: dict[str, Any], client: str | None, attacker: str | None) -> dict:
    _products(client)
    ready = audit.ready(settings.resolve(flags), cache=Cache())
    rows: list[dict[str, Any]] = []
    watch = Watch(update=lambda row, arrays: rows.append(dict(row)))
    _products(attacker)
    done = run.attack(ready.keys, ready.prepared, watch=watch, cache=Cache())
    if done.interrupted:
        raise KeyboardInterrupt
    found = [float(np.mean(row["psnr"])) for row in rows]
    return {
        "psnr": [round(value, 1) for value in found],
        "mean": round(float(np.mean(found)), 2),
        "fit": [float(f"{row['fit']:.2e}") for row in rows],
        "seconds": round(done.seconds_run, 2),
    }


def clients_at_once() -> Iterator[dict[str, Any]]:
    for model in ("cnn", "lenet"):
        for count in (8, 32):
            found = {name: _round_seconds(model, count, name) for name in _MAPS}
            yield {"model": model, "clients": count, **found}


_MAPS = ("map", "vmap")


def _round_seconds(model: str, count: int, clients_map: str) -> float:
    """Returns seconds a round of `count` clients with ten local steps of 16 images."""
    net = models.build(model, image_shape=(32, 32, 3), num_classes=10)
    params, buffers = jax.jit(net.init)(jax.random.key(0))
    loss_fn = losses.classification(
        lambda params, images: net.apply(params, buffers, images, True)[0]
    )
    local = clients.local_sgd(loss_fn, optax.sgd(0.05), steps=10, batch_size=16)
    made = federated.make([(federated.honest(local), count)], clients_map=clients_map)
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.uniform(size=(2000, 32, 32, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, 2000), jnp.int32),
    }
    partition = federated.iid(np.asarray(data["label"]), POPULATION, 0)
    plan = federated.plan(
        range(ROUNDS), partition, count=count, steps=10, batch_size=16, seed=0
    )

    @jax.jit
    def rounds(state: Any) -> Any:
        return federated.scan(jax.random.key(1), made, state, data, plan)

    start = made.init(jax.random.key(2), params, POPULATION)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        jax.block_until_ready(rounds(start))
        seconds.append((time.perf_counter() - begin) / ROUNDS)
    return float(f"{np.median(seconds[1:]):.4g}")


STUDIES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "machine": machine,
    "choices": engine_choices,
    "clients": clients_at_once,
    "precision": precision,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator")
    parser.add_argument("--studies", nargs="+", default=[*STUDIES], choices=STUDIES)
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in given.studies:
        _products(DEFAULT)
        for line in STUDIES[name]():
            found.setdefault(name, []).append(line)
            print(name, json.dumps(line), flush=True)
            text = json.dumps(found, indent=1)
            (given.out / "accelerator.json").write_text(text, "utf-8")
    print(f"{given.out / 'accelerator.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
