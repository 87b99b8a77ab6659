"""Certifies what attacks without a rule of their own have found.

Two conditions, of each image: the update determines it to within a hundredth of its
range (`bounds.identifiability`), and a second start arrives at the same image.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import bounds, driver
from invertjax.auditing import clients, programs
from invertjax.auditing.keys import Keys, second
from invertjax.auditing.observed import take
from invertjax.auditing.preparing import Prepared
from invertjax.auditing.situations import Situation, shapes_of_batch
from invertjax.auditing.watch import Watch
from invertjax.base import Arrays, Batch, Row, Stop
from invertjax.bounds.identifiability import TOLERATED
from invertjax.driver import stopping
from invertjax.driver.cache import Cache

WORDS = "identifiability and a second start"
ELSEWHERE = "a second start does not arrive at the same batch"
TOO_FAR = f"images may be further than {TOLERATED} from those behind the update"
NEARLY = 1e-5  # a larger cosine distance is no exact fit, whatever the precision
_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown


class Certified(NamedTuple):
    """Rows with their certificates.

    rows: those that were given, in order. facts: for the report.
    interrupted: whether the second start was.
    """

    rows: list[Row]
    facts: dict[str, Any]
    interrupted: bool = False


def certify(
    keys: Keys,
    prepared: Prepared,
    program: driver.Program,
    rows: Sequence[Row],
    arrays: Sequence[Arrays],
    *,
    rule: stopping.Rule = stopping.NEVER,
    watch: Watch,
    cache: Cache,
) -> Certified:
    """Sets `certified` where the images are determined, and found again.

    The cheapest condition comes first, and the second start last: where an update is
    not explained, nothing is compiled or run.

    Args:
      keys: of the audit.
      prepared: what was attacked.
      program: of the attack.
      rows, arrays: from `scores.scored`.
      rule: when a trial ends early.
      watch: who follows; its `update` is not told.
      cache: of compiled functions.
    """
    rows = list(rows)
    fitting = [i for i, row in enumerate(rows) if _fits(row)]
    if not prepared.plan.row.identifiable or not fitting:
        return Certified(rows, {})
    start = time.monotonic()
    if reason := _refuses(prepared):
        return Certified(rows, {"not_certified": reason})
    with watch.doing("computing what the update determines"):
        found = {i: _identified(prepared, arrays[i], cache) for i in fitting}
    close = [i for i, one in found.items() if np.any(one.errors <= TOLERATED)]
    facts: dict[str, Any] = {"not_certified": _why(found.values())}
    interrupted = False
    if close:
        facts = {"not_certified": ELSEWHERE}
        targets = np.asarray([rows[i]["target"] for i in close])
        again, interrupted = _second(keys, prepared, program, targets, rule, watch)
        for i, batch in zip(close, again, strict=not interrupted):
            sure = (found[i].errors <= TOLERATED) & _met(arrays[i], batch)
            rows[i] = {**rows[i], "certified": sure.tolist()}
    if interrupted:
        facts = {"not_certified": "the second start was interrupted"}
    elif any(any(rows[i]["certified"]) for i in close):
        facts = {"certified_by": WORDS}
    facts["seconds_certify"] = time.monotonic() - start
    return Certified(rows, facts, interrupted)


def _why(found: Iterable[bounds.Identified]) -> str:
    """Returns a reason for which no image is known closely enough."""
    return next((one.reason for one in found if one.reason), TOO_FAR)


def _fits(row: Row) -> bool:
    """Returns whether the update of what was found is that observed, or nearly."""
    fit: float | None = row.get("fit")
    done = row["loss"] is not None and row["stopped"] != Stop.NAMES[Stop.INTERRUPTED]
    return done and fit is not None and fit <= NEARLY


def _refuses(prepared: Prepared) -> str | None:
    """Returns why nothing can be certified here, None where it can."""
    target, situation = prepared.target, prepared.situation
    special = {
        "a defense": bool(target.protections),
        "local training": target.local is not None,
        "what a network draws": target.drawn is not None,
        "a client of the reader's own": target.client is not None,
        "a mean of clients": target.members is not None,
        "labels that are optimised": situation.threat.labels == "joint",
        "labels that are probabilities": _ndim(situation.trials, "label") == 3,
        "several processes": _jax.process_count() > 1,
    }
    for words, there in special.items():
        if there:
            return f"only a plain gradient of known labels can be, without {words}"
    leaves = jax.tree.leaves(situation.trials["update"])
    equations = sum(int(np.size(leaf[0])) for leaf in leaves)
    if too_many := bounds.refuses(int(np.prod(target.shape)), equations):
        return too_many
    return clients.refuses_forward_mode(
        situation.target,
        knows=situation.threat.protection_known,
        params=_params(situation),
        batch=shapes_of_batch(target, situation.threat),
    )


def _ndim(trials: dict[str, Any], name: str) -> int:
    return np.ndim(trials[name]) if name in trials else 0


def _params(situation: Situation) -> Any:
    if "params" in situation.shared:
        return situation.shared["params"]
    return take(situation.trials["params"], 0)


def _identified(prepared: Prepared, arrays: Arrays, cache: Cache) -> bounds.Identified:
    """Returns the bounds on the errors of a batch, as its row has it."""
    situation, plan = prepared.situation, prepared.plan
    trial = take(situation.trials, int(arrays["target"]))
    given = situation.shared, trial, arrays["label"]
    key = ("identifiability", programs.key_of(situation, plan))
    residual, derivative = _functions(situation, plan)
    residual = cache.jit((*key, "residual"), lambda: residual)
    derivative = cache.jit((*key, "jacobian"), lambda: derivative)
    images = np.asarray(arrays["image"], jnp.result_type(float))
    of_run = trial["update"], _params(situation), images
    return bounds.identified(
        lambda images: np.asarray(residual(*given, images)),
        lambda images: np.asarray(derivative(*given, images)),
        images,
        _norm(trial["update"]),
        max(map(_eps, jax.tree.leaves(of_run))),
    )


def _norm(tree: Any) -> float:
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(sum(np.sum(leaf**2) for leaf in leaves)))


def _eps(leaf: Any) -> float:
    """Returns the rounding of an array's type, 0 of integers."""
    dtype = _jax.numpy.result_type(leaf)
    floating = _jax.numpy.issubdtype(dtype, np.floating)
    return float(_jax.numpy.finfo(dtype).eps) if floating else 0.0


def _functions(
    situation: Situation, plan: programs.Plan
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Returns `(shared, trial, labels, images) -> [m]`, the update of the images minus
    the one observed, and its transposed Jacobian `[n, m]`."""
    bare = situation._replace(shared={}, trials={}, truth=None)  # arrays are arguments

    def residual(
        shared: Any, trial: Any, labels: jax.Array, images: jax.Array
    ) -> jax.Array:
        share = programs.share_of(bare._replace(shared=shared), plan.row, trial)
        batch: Batch = {"image": images, "label": labels}
        with jax.default_matmul_precision("highest"):  # while it is traced
            rest = jax.tree.map(jnp.subtract, share(batch), trial["update"])
        flat = [jnp.ravel(leaf).astype(images.dtype) for leaf in jax.tree.leaves(rest)]
        return jnp.concatenate(flat)

    def derivative(
        shared: Any, trial: Any, labels: jax.Array, images: jax.Array
    ) -> jax.Array:
        return bounds.jacobian(lambda x: residual(shared, trial, labels, x), images)

    return residual, derivative


def _second(
    keys: Keys,
    prepared: Prepared,
    program: driver.Program,
    targets: np.ndarray,
    rule: stopping.Rule,
    watch: Watch,
) -> tuple[list[Batch], bool]:
    """Returns what the same attack finds of some updates from other starts, and whether
    it was interrupted: then nothing."""
    situation = prepared.situation
    with watch.doing("attacking again from another start, to certify"):
        results = driver.run(
            program,
            situation.shared,
            take(situation.trials, targets),
            second(keys)[targets],
            rule=rule,
            on_chunk=lambda progress: watch.check(),
        ).results
    stopped = np.asarray(results.stopped)
    best = jax.tree.map(np.asarray, driver.best(results).batch)
    short = len(stopped) < len(targets)
    interrupted = short or bool(np.any(stopped == Stop.INTERRUPTED))
    found = [] if interrupted else [take(best, i) for i in range(len(stopped))]
    return found, interrupted


def _met(arrays: Arrays, other: Batch) -> np.ndarray:
    """Returns which images, `[B]` bool, are in another batch, with their labels."""
    mine, theirs = arrays["image"][:, None], np.clip(other["image"], 0, 1)[None]
    far = np.sqrt(np.mean((mine - theirs) ** 2, axis=(2, 3, 4)))
    same = np.asarray(arrays["label"])[:, None] == np.asarray(other["label"])[None]
    return np.any((far <= TOLERATED) & same, axis=1)
