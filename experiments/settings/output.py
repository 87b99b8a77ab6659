"""Where a run writes, and what it does with what is there."""

import dataclasses

from invertjax.cli.setting import setting


@dataclasses.dataclass(frozen=True)
class Output:
    """The folder of the results, and whether there are to be any."""

    workdir: str | None = setting("Folder of the results. Default: one in runs/.")
    overwrite: bool = setting("Replace the run in --workdir.", default=False)
    dry_run: bool = setting(
        "Say what would run, and what it would cost; run nothing.", default=False
    )


@dataclasses.dataclass(frozen=True)
class Resumable(Output):
    """The folder of a run that can be gone on with."""

    resume: bool = setting(
        "Go on with the run in --workdir after the last of it that is finished.",
        default=False,
    )


def as_name(*words: str) -> str:
    """Returns words such as names of models and data sets as the name of a folder."""
    return "-".join(words).replace("/", "_").replace(":", "-")
