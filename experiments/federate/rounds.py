"""The rounds of a federation: trained, tested, attacked, and kept on disk.

A row of metrics.jsonl is of a round that was tested or attacked, or in which clients
were dropped: `accuracy` is that of the model before the round, r rounds old, `epsilon`
what those r rounds have cost, and `epsilon_seen` counts the round's own update, too.
"""

import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from experiments.audit.versions import versions
from experiments.federate import auditing, epsilon, training
from experiments.federate import rows as rows_
from experiments.federate.auditing import Audit
from experiments.federate.training import Training
from experiments.settings.attack import Attack
from invertjax import federated
from invertjax.auditing import Watch
from invertjax.cli import fields, recorder, run_folder
from invertjax.cli.recorder import Recorder
from invertjax.cli.run_folder import RunDir
from invertjax.driver import Cache

FILES = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "state.npz",
    "federation.png",
    "audit-*.png",
)


_SPENT = ("epsilon_seen", "delta")
SUMMARY = {"interrupted": fields.FLAG}


class NotFinite(Exception):
    """Clients' updates were not finite, and that ends the run."""


def recording(out: RunDir, start: Any, rounds: int) -> Recorder:
    """Returns the rows and the state of a run, from its start or where it was ended.

    Args:
      out: its folder.
      start: the state before the first round.
      rounds: of the whole run.

    Raises:
      ValueError: where the folder holds rows or a state that cannot be read, or of
        another run.
    """

    def is_done(row: dict, state: Any) -> bool:
        return row["round"] < int(state.round)

    keeper = Recorder(out, recorder.state(start, is_done, rows_.check))
    try:
        rows_.check_order(keeper.rows, rounds)
        if not 0 <= int(keeper.payload.round) <= rounds:
            number = int(keeper.payload.round)
            raise ValueError(f"{recorder.STATE} is of round {number} of {rounds}")
    except ValueError as error:
        raise ValueError(
            f"--resume: {run_folder.ROWS} in --workdir={out.path} cannot be gone on "
            f"with: {error}; start again with --overwrite."
        ) from None
    out.json("summary.json", SUMMARY)  # refused while that is easy
    return keeper


def train(
    trained: Training,
    attack: Attack,
    keeper: Recorder,
    *,
    watch: Watch,
    on_round: Callable[[dict], None],
    cache: Cache,
) -> None:
    """Goes on from the keeper's state to the last round.

    Args:
      trained: from `training.prepare`.
      attack: settings.
      keeper: from `recording`.
      watch: who follows the attacks; its `check` is called after every round too.
      on_round: told of every round: its number, and accuracy and PSNR where measured.
      cache: of compiled functions.

    Raises:
      KeyboardInterrupt: as `watch.check`; the keeper has all rounds that are done.
      NotFinite: with `on_nan` "stop"; the keeper has the state before that round.
    """
    found, dataset = training.numbers(trained), training.dataset(trained)
    step = cache.jit(("round", training.static(trained)), lambda: _stepper(trained))
    test = cache.jit(("test",), lambda: training.tester(trained))
    audit = functools.partial(auditing.audit, trained, attack, watch=watch, cache=cache)
    first, rounds = int(keeper.payload.round), trained.federation.rounds
    plan = trained.plan(range(first, rounds + 1))
    for i, number in enumerate(range(first, rounds + 1)):
        start, state = time.monotonic(), keeper.payload
        row = _tested(trained, number, test, state)
        one = jax.tree.map(lambda leaf, i=i: leaf[i], plan)
        if number < rounds or _is_audited(trained, number):
            with nullcontext() if i else watch.doing("compiling a round"):
                after, seen, log = step(found, state, dataset, one)
            if number < rounds:
                row |= _dropped(seen, log, one.ids)
                _check_finite(trained, row)
            if _is_audited(trained, number):
                batch = jax.tree.map(lambda leaf, one=one: leaf[one.rows], dataset)
                row |= _said(keeper.folder, number, audit(seen, batch))
            state = after if number < rounds else state
        keeper.seconds += time.monotonic() - start
        on_round({"round": number, **row})
        row = {"round": number, "accuracy": None, **row, "seconds": keeper.seconds}
        keeper.add(row if _is_kept(row) else None, state)
        watch.check()


def summarise(
    trained: Training, attack: Attack, keeper: Recorder, stopped: str | None
) -> dict[str, Any]:
    """Returns `summary.json`: how it went, what leaked, and the threat model.

    Args:
      trained, attack, keeper: see `train`.
      stopped: why it ended before the last round; None: it did not.
    """
    rows = keeper.rows
    tested = [row for row in rows if row["accuracy"] is not None]
    attacked = [row for row in rows if row.get("attack")]
    last = tested[-1] if tested else {}
    name = attacked[-1]["attack"] if attacked else attack.attack
    return {
        "rounds": int(keeper.payload.round),
        "interrupted": stopped is not None,
        "stopped": stopped,
        "accuracy": last.get("accuracy"),
        **_privacy(trained, int(keeper.payload.round)),
        **_sizes(trained),
        "updates_dropped": sum(row.get("dropped", 0) for row in rows),
        "rounds_unchanged": sum(row.get("model_unchanged", False) for row in rows),
        "audits": [_brief(row) for row in attacked],
        "seconds": keeper.seconds,
        "threat_model": auditing.threats(trained, attack, name),
        **versions(),
    }


def _stepper(trained: Training) -> Callable:
    return lambda *args: training.step(trained, *args)


def _privacy(trained: Training, rounds: int) -> dict[str, Any]:
    """Returns what so many rounds have cost; {} without differential privacy."""
    topics = trained.clients, trained.federation, trained.partition
    clients, plan, partition = topics
    spent = epsilon.epsilon(clients, trained.run, partition, plan, rounds)
    return {**spent, "delta_warning": epsilon.warning(*topics)} if spent else {}


def _is_audited(trained: Training, number: int) -> bool:
    return number in trained.federation.audit_rounds


def _tested(
    trained: Training, number: int, test: Callable, state: federated.State
) -> dict[str, Any]:
    """Returns accuracy, and epsilon if there is one, where it is time."""
    plan = trained.federation
    at_last = number == plan.rounds
    if (
        number % plan.evaluate_every
        and not at_last
        and not _is_audited(trained, number)
    ):
        return {}
    spent = epsilon.epsilon(
        trained.clients,
        trained.run,
        trained.partition,
        plan,
        number,
        audited=_is_audited(trained, number),
    )
    return {"accuracy": float(test(state.params)), **spent}


def _dropped(seen: federated.Seen, log: federated.Log, ids: Any) -> dict[str, Any]:
    count = int(log.dropped)
    if not count:
        return {"dropped": 0}
    lost = np.asarray(ids)[np.asarray(seen.weights) == 0]
    return {
        "dropped": count,
        "clients_dropped": [int(client) for client in lost],
        "model_unchanged": bool(log.weight == 0),
    }


def _check_finite(trained: Training, row: dict[str, Any]) -> None:
    if row["dropped"] and trained.federation.on_nan == "stop":
        raise NotFinite(
            f"updates that are not finite, of clients {row['clients_dropped']}"
        )


def _said(out: RunDir, number: int, done: Audit) -> dict[str, Any]:
    """Writes the picture of an audit, and returns its part of a row."""
    if done.picture is not None:
        out.write_image(f"audit-{number:05}.png", done.picture)
    return {**done.found, "verdict": done.verdict}


def _is_kept(row: dict[str, Any]) -> bool:
    return row["accuracy"] is not None or bool(row.get("dropped"))


def _sizes(trained: Training) -> dict[str, int]:
    """Returns who has how many examples."""
    sizes = np.array([len(rows) for rows in trained.partition])
    in_a_step = trained.clients.batch_size // trained.steps
    return {
        "clients": trained.federation.clients,
        "clients_without_data": int(np.sum(sizes == 0)),
        "clients_that_repeat_rows": int(np.sum((sizes > 0) & (sizes < in_a_step))),
        "examples_least": int(sizes[sizes > 0].min()),
        "examples_most": int(sizes.max()),
    }


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    names = ["round", "accuracy", "psnr_mean", "psnr_min", "psnr_max", "verdict"]
    names += [name for name in _SPENT if name in row]
    return {name: row[name] for name in names}
