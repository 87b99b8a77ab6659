"""From all settings of a run to what an attack needs, and to the report."""

from collections.abc import Callable

from experiments.audit import digests, prepare
from experiments.audit.prepare import Progress, Ready
from experiments.settings.settings import Settings
from invertjax import Report
from invertjax.auditing import Watch, run
from invertjax.auditing.watch import SILENT
from invertjax.driver import Cache, stopping


def ready(
    chosen: Settings,
    *,
    progress: Progress = lambda items, name: iter(items),
    on_read: Callable[[], None] = lambda: None,
    cache: Cache,
) -> Ready:
    """Reads all that the audit needs, and prepares it.

    Args:
      chosen: all settings.
      progress: a progress bar.
      on_read: called when images are read, before anything slow.
      cache: of what is slow to make.

    Raises:
      ValueError: naming the flag of what is not there or does not fit.
    """
    data, victim, attack, clients, saved, run_ = chosen
    if saved.update is not None:
        made = prepare.given(saved, victim, clients, attack, run_, cache=cache)
        return made._replace(inputs=digests.of_files(saved, victim))
    found = prepare.read(data, victim, clients, run_, cache=cache)
    on_read()
    made = prepare.simulated(
        found, data, victim, clients, attack, run_, progress=progress, cache=cache
    )
    images = {"split": found.truth, "train_split": found.public}
    read = {**digests.of_files(saved, victim), **digests.of_images(images)}
    return made._replace(inputs=read)


def report(
    chosen: Settings, *, watch: Watch = SILENT, cache: Cache | None = None
) -> Report:
    """Returns the report of a run, without writing a file."""
    cache = cache or Cache()
    prepared = ready(chosen, cache=cache)
    found = run.complete(
        prepared.keys,
        prepared.prepared,
        rule=stopping.RULES[chosen.attack.stop or "never"],
        control=bool(chosen.attack.null_control),
        watch=watch,
        known=prepared.known,
        facts={"victim": prepared.facts},
        cache=cache,
    )
    assert found is not None  # there is at least one target
    return found
