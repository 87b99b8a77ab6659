"""A federation as a person runs it: a progress bar, files, a table, verdicts."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments.audit import cost, digests
from experiments.audit.versions import versions
from experiments.federate import auditing, rounds, training
from experiments.federate import picture as federation_picture
from experiments.federate.rows import NULLS
from experiments.federate.training import Training
from experiments.settings import federation, settings
from experiments.settings.attack import Attack
from experiments.settings.federation import Federation
from experiments.settings.output import Resumable, as_name
from experiments.settings.settings import Settings
from invertjax import driver
from invertjax.auditing import Watch
from invertjax.auditing.attackers import ATTACKERS
from invertjax.cli import command, earlier, interrupts, progress, run_folder
from invertjax.cli.progress import Bar
from invertjax.cli.recorder import Recorder
from invertjax.driver import Cache
from invertjax.reports import text

COLUMNS = ("round", "accuracy", "PSNR dB", "worst", "best", "no update", "labels")


def federate(given: Mapping[str, Any], plan: Federation, output: Resumable) -> int:
    """Trains a federation, from given settings to files; returns the exit code.

    Args:
      given: as `settings.resolve` takes them.
      plan: the federation.
      output: where it is written.

    Raises:
      ValueError: on bad input, before anything is traced or written.
    """
    chosen = federation.of_clients(given, plan)
    jax.config.update("jax_enable_x64", chosen.run.x64)
    kept = {**settings.flat(chosen), **federation.flat(plan)}
    on_nan = kept.pop("on_nan")  # may change: whoever stopped can go on
    workdir = output.workdir or _default_workdir(chosen, kept)
    run_folder.check(
        workdir,
        kept,
        overwrite=output.overwrite,
        resume=output.resume,
        files=rounds.FILES,
    )
    if output.dry_run:
        cost.say(cost.whole(chosen, plan), chosen.attack)
        return 0
    cache = Cache()
    with progress.stage("reading"):
        trained = _prepared(chosen, plan, cache)
    auditing.check_labels(trained, chosen.attack)
    cost.say(cost.before(chosen, plan), chosen.attack)
    inputs = _inputs(trained, chosen)
    if output.resume:
        earlier.check_inputs(workdir, inputs)
    start = training.start(trained)
    with run_folder.open_(
        workdir,
        overwrite=output.overwrite,
        resume=output.resume,
        files=rounds.FILES,
    ) as out:
        keeper = rounds.recording(out, start, plan.rounds)
        if keeper.complete():
            print(f"All {plan.rounds} rounds are done: {out.path}")
            return 0
        keeper.start(
            {"settings": kept, "on_nan": on_nan, "inputs": inputs, **versions()}
        )
        return _run(trained, chosen.attack, keeper, cache)


def _default_workdir(chosen: Settings, kept: Mapping[str, Any]) -> str:
    name = as_name("federate", str(chosen.victim.model), chosen.data.dataset)
    return f"runs/{name}-{settings.digest(kept)}"


def _inputs(trained: Training, chosen: Settings) -> dict[str, str]:
    """Returns digests of what the federation reads, by flag."""
    images = {"split": trained.test, "train_split": trained.examples}
    files = digests.of_files(chosen.saved, trained.victim)
    return {**files, **digests.of_images(images)}


def _prepared(chosen: Settings, plan: Federation, cache: Cache) -> Training:
    data, victim, attack, clients, _, run = chosen
    return training.prepare(
        data,
        victim,
        clients,
        run,
        plan,
        rule=ATTACKERS[attack.attack].rule,
        check=auditing.checker(victim, attack),
        cache=cache,
    )


def _run(trained: Training, attack: Attack, keeper: Recorder, cache: Cache) -> int:
    """Trains on, and leaves all files as they should be; returns the exit code."""
    stopped, code, said = None, 0, ""
    try:
        with interrupts.deferred() as check, _bar(trained, keeper) as bar:
            rounds.train(
                trained,
                attack,
                keeper,
                watch=_watch(bar, check),
                on_round=_on_round(bar),
                cache=cache,
            )
    except KeyboardInterrupt:
        stopped, code = "interrupted", command.INTERRUPTED
        said = "interrupted: go on with --resume."
    except rounds.NotFinite as error:
        stopped, code = "not finite", command.FAILED
        said = (
            f"--on_nan=stop: round {int(keeper.payload.round)} has {error}; go on "
            "without them with --resume --on_nan=drop, or with smaller learning rates."
        )
    finally:
        keeper.flush()
    _finish(trained, attack, keeper, stopped)
    return command.said(said, code) if code else 0


def _finish(
    trained: Training, attack: Attack, keeper: Recorder, stopped: str | None
) -> None:
    """Writes and prints what came of the run."""
    summary = rounds.summarise(trained, attack, keeper, stopped)
    if keeper.rows:
        title = f"{trained.victim.model} on {trained.data.dataset}"
        picture = federation_picture.draw(keeper.rows, title)
        keeper.folder.write_image("federation.png", picture)
    keeper.folder.write_json("summary.json", summary)
    print(_text(keeper.rows, summary))
    print(f"Files: {keeper.folder.path}")


def _bar(trained: Training, keeper: Recorder) -> Bar:
    total, done = trained.federation.rounds, int(keeper.payload.round)
    return Bar("training", total=total, done=done, unit="round")


def _on_round(bar: Bar) -> Callable[[dict], None]:
    said = {}

    def show(row: dict) -> None:
        for name, words in (
            ("accuracy", "accuracy {:.1%}"),
            ("psnr_mean", "{:.1f} dB"),
        ):
            if row.get(name) is not None:
                said[name] = words.format(row[name])
        bar.say("training")
        bar.add(note=", leak ".join(said.values()))

    return show


def _watch(bar: Bar, check: Callable[[], None]) -> Watch:
    def on_chunk(progress: driver.Progress) -> None:
        bar.say(f"attacking {progress.done / progress.total:.0%}")

    return Watch(on_chunk, check, doing=bar.doing)


def _text(rows: list[dict], summary: dict[str, Any]) -> str:
    tested = [row for row in rows if row["accuracy"] is not None]
    parts = [text.table([_line(row) for row in tested], COLUMNS), *_remarks(summary)]
    parts.append("The attacker was given:")
    parts += [f"  {name}: {value}" for name, value in summary["threat_model"].items()]
    parts += [_verdict(row) for row in summary["audits"]]
    return "\n".join(parts)


def _verdict(row: dict[str, Any]) -> str:
    """Returns the verdict of an audit, with what the server has seen until then."""
    said = f"round {row['round']}: {row['verdict']}"
    if "epsilon_seen" not in row:
        return said
    spent = f"epsilon {_bound(row, 'epsilon_seen')} at delta {row['delta']:g}"
    return f"{said} Seen until then, this update counted: {spent}."


def _bound(row: dict[str, Any], name: str = "epsilon") -> str:
    return "none" if row[name] is None else f"{row[name]:.3g}"


def _remarks(summary: dict[str, Any]) -> list[str]:
    """Returns what a reader of the table should know besides."""
    found = []
    if summary.get("delta"):
        found.append(
            f"Differential privacy of every example: epsilon {_bound(summary)} at "
            f"delta {summary['delta']:g}, for the {summary['rounds']} rounds of "
            "training as they were drawn."
        )
    if summary.get("delta_warning"):
        found.append(f"Warning: {summary['delta_warning']}")
    if summary["clients_without_data"]:
        found.append(
            f"{summary['clients_without_data']} of {summary['clients']} clients have "
            "no data, and never take part."
        )
    if summary["updates_dropped"]:
        found.append(
            f"{summary['updates_dropped']} updates were not finite, and were dropped; "
            f"{summary['rounds_unchanged']} rounds had no other, and changed nothing."
        )
    return found


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    head = (str(row["round"]), f"{row['accuracy']:.1%}")
    if row.get("psnr_mean") is None:
        return (*head, *[""] * (len(COLUMNS) - 2))
    floor = max(row[name] for name in NULLS if name in row)
    shown = (row["psnr_mean"], row["psnr_min"], row["psnr_max"], floor)
    return (*head, *[f"{x:.2f}" for x in shown], f"{row['label_recall']:.0%}")
