"""The rounds of a federation: trained, tested, attacked, and kept on disk.

A row of metrics.jsonl is of a round that was tested or attacked, or in which clients
were dropped: `accuracy` is that of the model before the round, r rounds old.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.audit import run as audit
from experiments.audit.prepare import Bars
from experiments.federate import auditing, epsilon, training
from experiments.federate.training import Training
from experiments.settings import traced
from invertjax.cli import checkpoints
from invertjax.cli.run_folder import RunDir

FILES = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "state.npz",
    "federation.png",
    "audit-*.png",
)
FLUSH_SECONDS = 1.0


class NotFinite(Exception):
    """Clients' updates were not finite, and that ends the run."""


class Keeper:
    """Rows and state: in memory, and on disk after the first round that ends a second
    or more after the last time; after ten times what writing takes, if that is longer.

    Rows are written before the state. Whoever goes on forgets rows of rounds that the
    state has not done.
    """

    def __init__(self, out: RunDir, start: Any):
        self.out, self.rows, self.state = out, [], start
        self.seconds, self.pause, self.written = 0.0, FLUSH_SECONDS, time.monotonic()
        file = out.path / "state.npz"
        if file.exists():
            try:
                self.state = checkpoints.load(file, start)
                self.rows = self._rows_before(int(self.state.round))
            except (ValueError, LookupError) as error:
                raise ValueError(
                    f"--resume: {error} Start again with --overwrite."
                ) from None
            self.seconds = self.rows[-1]["seconds"] if self.rows else 0.0

    def _rows_before(self, round):
        file = self.out.path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [row for row in map(json.loads, lines) if row["round"] < round]

    def complete(self) -> bool:
        """Whether the folder holds a whole run."""
        return self.out.json("summary.json").get("interrupted") is False

    def add(self, row: dict | None, state: Any) -> None:
        """The state after a round, and its row if it has one."""
        self.rows += [row] if row else []
        self.state = state
        if time.monotonic() - self.written > self.pause:
            self.flush()

    def flush(self) -> None:
        start = time.monotonic()
        self.out.write_rows(self.rows)
        checkpoints.save(self.out.path / "state.npz", self.state)
        self.written = time.monotonic()
        self.pause = max(FLUSH_SECONDS, 10 * (self.written - start))


def train(
    trained: Training, keeper: Keeper, bars: Bars, on_round: Callable[[dict], None]
) -> None:
    """Goes on from the keeper's state to the last round.

    Args:
      trained: from `training.prepare`.
      keeper: of rows and state.
      bars: progress of attacks; its `check` is called after every round too.
      on_round: told of every round: its number, and accuracy and PSNR where measured.

    Raises:
      KeyboardInterrupt: as `bars.check`; the keeper has all rounds that are done.
      NotFinite: with `on_nan` "stop"; the keeper has the state before that round.
    """
    found = traced.of(trained.settings)
    dataset = training.dataset(trained)
    step = jax.jit(lambda *args: training.step(trained, *args))
    test = jax.jit(training.tester(trained))
    first, rounds = int(keeper.state.round), trained.federation.rounds
    plan, known = trained.plan(range(first, rounds + 1)), {}
    for i, round in enumerate(range(first, rounds + 1)):
        start, state = time.monotonic(), keeper.state
        row = _tested(trained, round, test, state)
        one = jax.tree.map(lambda leaf, i=i: leaf[i], plan)
        if round < rounds or _is_audited(trained, round):
            after, seen, log = step(found, state, dataset, one)
            if round < rounds:
                row |= _dropped(seen, log, one.ids)
                _check_finite(trained, row)
            if _is_audited(trained, round):
                batch = jax.tree.map(lambda leaf, one=one: leaf[one.rows], dataset)
                done = auditing.attack(trained, seen, batch, bars, known)
                row |= _said(keeper.out, round, done)
            state = after if round < rounds else state
        keeper.seconds += time.monotonic() - start
        on_round({"round": round, **row})
        row = {"round": round, "accuracy": None, **row, "seconds": keeper.seconds}
        keeper.add(row if _is_kept(row) else None, state)
        bars.check()


def _is_audited(trained, round):
    return round in trained.federation.audit_rounds


def _tested(trained, round, test, state):
    """Accuracy, and epsilon if there is one, where it is time."""
    plan = trained.federation
    at_last = round == plan.rounds
    if round % plan.evaluate_every and not at_last and not _is_audited(trained, round):
        return {}
    spent = epsilon.epsilon(
        trained.settings, trained.partition, plan.participants, round
    )
    return {"accuracy": float(test(state.params)), **spent}


def _dropped(seen, log, ids):
    count = int(log.dropped)
    if not count:
        return {"dropped": 0}
    lost = np.asarray(ids)[np.asarray(seen.weights) == 0]
    return {
        "dropped": count,
        "clients_dropped": [int(client) for client in lost],
        "model_unchanged": bool(log.weight == 0),
    }


def _check_finite(trained, row):
    if row["dropped"] and trained.federation.on_nan == "stop":
        raise NotFinite(
            f"updates that are not finite, of clients {row['clients_dropped']}"
        )


def _said(out, round, done):
    if done.picture is not None:
        out.write_image(f"audit-{round:05}.png", done.picture)
    return {**done.found, "verdict": done.verdict}


def _is_kept(row):
    return row["accuracy"] is not None or row.get("dropped")


def summarise(trained: Training, keeper: Keeper, stopped: str | None) -> dict:
    """`summary.json`: how it went, what leaked, and the threat model.

    Args:
      stopped: why it ended before the last round; None: it did not.
    """
    sizes = np.array([len(rows) for rows in trained.partition])
    plan, rows = trained.federation, keeper.rows
    tested = [row for row in rows if row["accuracy"] is not None]
    attacked = [row for row in rows if row.get("attack")]
    last = tested[-1] if tested else {}
    return {
        "rounds": int(keeper.state.round),
        "interrupted": stopped is not None,
        "stopped": stopped,
        "accuracy": last.get("accuracy"),
        **{name: last[name] for name in ("epsilon", "delta") if name in last},
        "clients": plan.clients,
        "clients_without_data": int(np.sum(sizes == 0)),
        "clients_that_repeat_rows": int(np.sum((sizes > 0) & (sizes < _rows(trained)))),
        "examples_least": int(sizes[sizes > 0].min()),
        "examples_most": int(sizes.max()),
        "updates_dropped": sum(row.get("dropped", 0) for row in rows),
        "rounds_unchanged": sum(row.get("model_unchanged", False) for row in rows),
        "audits": [_brief(row) for row in attacked],
        "seconds": keeper.seconds,
        "threat_model": auditing.threat_model(
            trained, attacked[-1]["attack"] if attacked else trained.settings.attack
        ),
        **audit.versions(),
    }


def _rows(trained):
    """Rows of one local step."""
    return trained.settings.batch_size // trained.steps


def _brief(row):
    names = ("round", "accuracy", "psnr_mean", "psnr_min", "psnr_max", "verdict")
    return {name: row[name] for name in names}
