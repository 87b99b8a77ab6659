"""A reconstruction as a person runs it: progress bars, files, a table, a verdict."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.audit import cost
from experiments.audit.prepare import Ready
from experiments.audit.run import ready
from experiments.audit.versions import versions
from experiments.reconstruct import resumed
from experiments.settings import settings
from experiments.settings.output import Resumable, as_name
from experiments.settings.settings import Settings
from invertjax import Report
from invertjax.auditing import Watch, run
from invertjax.cli import earlier, interrupts, processes, progress, run_folder
from invertjax.cli.command import FAILED, INTERRUPTED
from invertjax.cli.cost import Estimate, iterations, of_update
from invertjax.cli.recorder import Elsewhere, Recorder
from invertjax.driver import Cache, stopping


def reconstruct(
    given: Mapping[str, Any],
    output: Resumable,
    place: processes.Place = processes.ALONE,
) -> int:
    """Runs one reconstruction, from given settings to files; returns the exit code.

    Raises:
      ValueError: on bad input, before anything is traced or written.
      layout.Lost: if another process of the run has stopped.
    """
    processes.check(place)
    chosen = settings.resolve(given)
    kept = settings.flat(chosen)
    digest = settings.digest(kept)
    jax.config.update("jax_enable_x64", chosen.run.x64)
    processes.join(place)
    processes.check_same(digest)
    workdir = output.workdir or _default_workdir(chosen, digest)
    cache = Cache()

    def checked() -> None:
        if processes.is_first():
            run_folder.check(
                workdir, kept, overwrite=output.overwrite, resume=output.resume
            )

    def opened() -> Any:
        if not processes.is_first():
            return Elsewhere()
        if output.resume:
            earlier.check_inputs(workdir, prepared.inputs)
        folder = run_folder.open_(
            workdir, overwrite=output.overwrite, resume=output.resume
        )
        store = resumed.store(prepared.prepared.situation)
        found = Recorder(held.enter_context(folder), store)
        found.folder.json("summary.json", resumed.SUMMARY)  # refused while that is easy
        return found

    processes.together(checked)
    if output.dry_run and chosen.saved.update is None:
        _say(cost.whole(chosen), chosen)
        return processes.parting(0)
    prepared = _prepared(chosen, cache)
    if output.dry_run:
        return processes.parting(0)
    with contextlib.ExitStack() as held:  # the folder, until the run has ended
        recorder = processes.together(opened)
        processes.ENDING.where = (
            f": finished targets are in {workdir}, go on with --resume"
        )
        if processes.of_first(recorder.complete()):
            return processes.parting(_say_done(recorder))
        report = _attack(
            chosen,
            prepared,
            recorder,
            {"settings": kept, "inputs": prepared.inputs, **versions()},
            cache,
        )
        if report is None or not processes.is_first():
            return processes.parting(0)
        return processes.parting(_finish(report, recorder))


def _prepared(chosen: Settings, cache: Cache) -> Ready:
    """Reads and prepares all that the attack needs, and says what it will cost."""
    with progress.stage("computing updates", shown=processes.is_first()):
        prepared = processes.together(
            lambda: ready(
                chosen,
                progress=_bar,
                on_read=lambda: _say(cost.before(chosen), chosen),
                cache=cache,
            )
        )
    _say_of_update(prepared, chosen)
    return prepared


def _say(found: Estimate | None, chosen: Settings) -> None:
    """Says what the run will cost."""
    if processes.is_first():
        cost.say(found, chosen.attack)


def _say_of_update(prepared: Ready, chosen: Settings) -> None:
    """Says what an attack on a given update will cost."""
    if chosen.saved.update is None or not processes.is_first():
        return
    situation, plan = prepared.prepared.situation, prepared.prepared.plan
    steps = iterations(plan.row, plan.steps, chosen.attack.restarts, plan.warm)
    target, params = situation.target, situation.shared["params"]
    cost.say(of_update(target.loss_fn, params, target.shape, steps, target.local))


def _default_workdir(chosen: Settings, digest: str) -> str:
    source, model = chosen.data.dataset or "update", chosen.victim.model or "loss"
    return f"runs/{as_name(chosen.attack.attack, model, source)}-{digest}"


def _say_done(recorder: Any) -> int:
    """Returns the exit code of a run that is already complete, and says that it is."""
    if not processes.is_first():
        return 0
    summary = recorder.folder.json("summary.json")
    print(f"All {len(recorder.rows)} targets are done: {recorder.folder.path}")
    return _code(summary)


def _attack(
    chosen: Settings, prepared: Ready, recorder: Any, config: dict, cache: Cache
) -> Report | None:
    """Returns the report; finished targets are recorded on the way."""
    bar = progress.Bar("inverting", shown=processes.is_first())
    with interrupts.deferred() as check, bar, recorder:

        def on_chunk(now: Any) -> None:
            note = f"objective {float(np.min(now.losses)):.2e}"
            bar.reach(now.done, now.total, note)
            recorder.flush_in_time()

        watch = Watch(on_chunk, check, recorder.add, bar.doing)
        todo = _missing(recorder, prepared.prepared.situation.updates)
        earlier = _earlier(recorder)
        recorder.start(config)
        return run.complete(
            prepared.keys,
            prepared.prepared,
            rule=stopping.RULES[chosen.attack.stop or "never"],
            control=bool(chosen.attack.null_control),
            watch=watch,
            finished=(list(recorder.rows), list(recorder.payload)),
            todo=todo,
            known=prepared.known,
            facts={"victim": prepared.facts},
            earlier=earlier,
            memory_limit=processes.memory_limit(),
            cache=cache,
        )


def _missing(recorder: Any, updates: int) -> list[int]:
    """Returns the targets that the run has not finished, in every process."""
    done = np.zeros(updates, np.int32)
    done[[row["target"] for row in recorder.rows]] = 1
    return [int(i) for i in np.flatnonzero(processes.of_first(done) == 0)]


def _earlier(recorder: Any) -> dict[str, float]:
    """Returns the seconds that a run took before it was interrupted."""
    if not processes.is_first():
        return {}
    summary = recorder.folder.json("summary.json")
    return {k: v for k, v in summary.items() if k in ("seconds_compile", "seconds_run")}


def _finish(report: Report, recorder: Any) -> int:
    """Writes and prints the outcome; returns the exit code."""
    out = recorder.folder
    files = report.files()  # in the order of targets, which is not that of recording
    last = "summary.json"  # who goes on looks at it
    for name in (*sorted(set(files) - {last}), last):
        run_folder.write(out.path / name, files[name])
    print(report)
    print(f"Files: {out.path}")
    return _code(report.summary, report.rows)


def _code(summary: dict, rows: Iterable[dict] = ()) -> int:
    """Returns the exit code, and says on stderr what went wrong."""
    if summary.get("failed"):
        which = [str(row["target"]) for row in rows if row["loss"] is None]
        print(
            f"error: {summary['failed']} of {summary.get('targets')} targets had no "
            f"trial with a finite objective{': ' * bool(which)}{', '.join(which)}.",
            file=sys.stderr,
        )
    if summary.get("interrupted"):
        print("interrupted: go on with --resume.", file=sys.stderr)
        return INTERRUPTED
    return FAILED if summary.get("failed") else 0


def _bar(items: Any, words: str) -> Iterator:
    return progress.over(items, words, unit="chunk", shown=processes.is_first())
