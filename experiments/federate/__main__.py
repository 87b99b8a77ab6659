"""Trains a federation, and audits it while it trains.

    python -m experiments.federate
    python -m experiments.federate --dataset=mnist --model=lenet --clients=100 \\
        --participants=10 --rounds=200 --local_steps=5 --local_batch=10 --targets=1
    python -m experiments.federate --sees=mean --audit_rounds=0,10,50
    python -m experiments.federate --partition=dirichlet:0.3 --server=fedadam
    python -m experiments.federate --defense=dp_sgd:1,0.5 --clients=5

Clients hold the examples of --train_split. In every round --participants of them, drawn
at random, share an update: a gradient, or with --local_steps what local training
changed. The server takes a step along the mean. At --audit_rounds the attack is run on
what the server sees of that very round, after --defense: on --targets of the updates,
or with --sees=mean on the mean of all, which is then made by secure aggregation.
Accuracy is measured on --split. The other flags are those of experiments.reconstruct.

Writes config.json, metrics.jsonl (a row for a round that was tested or attacked, or in
which clients were dropped), summary.json, state.npz, federation.png and a picture an
audit into --workdir. Ctrl-C keeps all rounds that are done; a kill loses those since
the last writing, a second's (ten times as long as writing takes, if that is longer),
and the one that runs. --resume goes on, with the same result as without a break. Exit
codes: 0 done, 1 updates not finite with --on_nan=stop, 2 bad input, 130 interrupted.
"""

import dataclasses
from typing import Any

import jax
from absl import app, flags
from tqdm import tqdm

from experiments.audit import prepare, report
from experiments.audit import run as audit
from experiments.federate import picture as federation_picture
from experiments.federate import rounds, training
from experiments.settings import federation, traced
from experiments.settings import flags as settings
from invertjax.cli import command, interrupts, run_folder, startup

flags.adopt_module_key_flags(settings)
_DEFAULT = federation.Federation()
flags.DEFINE_integer("clients", _DEFAULT.clients, "Clients in all.")
flags.DEFINE_integer("participants", _DEFAULT.participants, "Of them in every round.")
flags.DEFINE_integer("rounds", _DEFAULT.rounds, "Rounds of training.")
flags.DEFINE_string(
    "partition",
    _DEFAULT.partition,
    "Who holds which examples: iid; dirichlet:A, the shares of every class drawn from "
    "a Dirichlet of concentration A; by_class:K, K shards sorted by label a client.",
)
flags.DEFINE_string(
    "server", _DEFAULT.server, f"Its optimiser, one of {', '.join(federation.SERVERS)}."
)
flags.DEFINE_float(
    "server_lr",
    None,
    "Its learning rate. Default: 1; 0.05 where clients share gradients; fedadam 0.01.",
)
flags.DEFINE_string(
    "sees",
    _DEFAULT.sees,
    "What the server sees of a round: every client's update, or by secure aggregation "
    "their mean alone (client, mean).",
)
flags.DEFINE_string(
    "on_nan",
    _DEFAULT.on_nan,
    "Where updates are not finite: drop them and go on, or stop (drop, stop).",
)
flags.DEFINE_integer(
    "evaluate_every", _DEFAULT.evaluate_every, "Rounds between two tests."
)
flags.DEFINE_list(
    "audit_rounds",
    None,
    "Rounds whose updates are attacked, e.g. 0,10,50; 0: the untrained network's. "
    "Default: 0 and --rounds, what would be shared next. --audit_rounds=: none.",
)
_RESUME = flags.DEFINE_bool(
    "resume",
    False,
    "Go on with the run in --workdir after its last finished round.",
    allow_override=True,  # tests import several command lines
)
COLUMNS = ("round", "accuracy", "PSNR dB", "worst", "best", "no update", "labels")


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    return command.guarded(lambda: _main(argv))


def _main(argv):
    command.check_arguments(argv)
    plan = federation.resolve(_federation())
    resolved = federation.client(settings.config_from_flags(), plan)
    jax.config.update("jax_enable_x64", resolved.x64)
    kept = {**dataclasses.asdict(resolved), **dataclasses.asdict(plan)}
    on_nan = kept.pop("on_nan")  # may change: whoever stopped can go on
    workdir = settings.WORKDIR.value or (
        f"runs/federate-{resolved.model}-"
        f"{resolved.dataset.replace('/', '_').replace(':', '-')}-"
        f"{federation.digest(kept)}"
    )
    resume = _RESUME.value
    run_folder.check(
        workdir,
        kept,
        overwrite=settings.OVERWRITE.value,
        resume=resume,
        files=rounds.FILES,
    )
    trained = training.prepare(resolved, plan)
    start = training.start(trained, traced.of(resolved), trained.victim.params)
    out = run_folder.open_(workdir, resume=resume, files=rounds.FILES)
    keeper = rounds.Keeper(out, start)
    if keeper.complete():
        print(f"All {plan.rounds} rounds are done: {out.path}")
        return 0
    content = {"settings": kept, "on_nan": on_nan, **audit.versions()}
    out.write_json("config.json", content)
    return _run(trained, keeper)


def _federation():
    names = [field.name for field in dataclasses.fields(federation.Federation)]
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    if (audits := values["audit_rounds"]) is not None:
        try:
            values["audit_rounds"] = tuple(int(text) for text in audits)
        except ValueError:
            raise ValueError(
                f"--audit_rounds={','.join(audits)}: expected whole numbers, e.g. 0,10."
            ) from None
    return federation.Federation(**values)


def _run(trained, keeper):
    """Trains on, and leaves all files as they should be; the exit code."""
    stopped, code, said = None, 0, ""
    try:
        with interrupts.deferred() as check, _bar(trained, keeper) as bar:
            rounds.train(trained, keeper, _bars(bar, check), _on_round(bar))
    except KeyboardInterrupt:
        stopped, code = "interrupted", command.INTERRUPTED
        said = "interrupted: go on with --resume."
    except rounds.NotFinite as error:
        stopped, code = "not finite", command.FAILED
        said = (
            f"--on_nan=stop: round {int(keeper.state.round)} has {error}; go on "
            "without them with --resume --on_nan=drop, or with smaller learning rates."
        )
    finally:
        keeper.flush()
    summary = rounds.summarise(trained, keeper, stopped)
    if keeper.rows:
        title = f"{trained.settings.model} on {trained.settings.dataset}"
        picture = federation_picture.draw(keeper.rows, title)
        keeper.out.write_image("federation.png", picture)
    keeper.out.write_json("summary.json", summary)
    print(_text(keeper.rows, summary))
    print(f"Files: {keeper.out.path}")
    return command.said(said, code) if code else 0


def _bar(trained, keeper):
    return tqdm(
        total=trained.federation.rounds,
        initial=int(keeper.state.round),
        desc="training",
        unit="round",
        disable=None,
    )


def _on_round(bar):
    said = {}

    def show(row):
        for name, text in (("accuracy", "accuracy {:.1%}"), ("psnr_mean", "{:.1f} dB")):
            if row.get(name) is not None:
                said[name] = text.format(row[name])
        bar.set_description_str("training", False)
        bar.set_postfix_str(", leak ".join(said.values()), False)
        bar.update(min(1, bar.total - bar.n))

    return show


def _bars(bar, check):
    def steps(progress):
        bar.set_description_str(f"attacking {progress.done / progress.total:.0%}")

    return prepare.Bars(steps=steps, check=check)


def _text(rows, summary):
    tested = [row for row in rows if row["accuracy"] is not None]
    parts = [report.table([_line(row) for row in tested], COLUMNS)]
    if summary.get("delta"):
        bound = summary["epsilon"]
        shown = "none" if bound is None else f"{bound:.3g}"
        parts.append(
            f"Differential privacy of every example: epsilon {shown} at delta "
            f"{summary['delta']:g}, as the rounds were drawn."
        )
    if summary["clients_without_data"]:
        parts.append(
            f"{summary['clients_without_data']} of {summary['clients']} clients have "
            "no data, and never take part."
        )
    if summary["updates_dropped"]:
        parts.append(
            f"{summary['updates_dropped']} updates were not finite, and were dropped; "
            f"{summary['rounds_unchanged']} rounds had no other, and changed nothing."
        )
    parts.append("The attacker was given:")
    parts += [f"  {name}: {value}" for name, value in summary["threat_model"].items()]
    parts += [f"round {row['round']}: {row['verdict']}" for row in summary["audits"]]
    return "\n".join(parts)


def _line(row):
    head = (str(row["round"]), f"{row['accuracy']:.1%}")
    if row.get("psnr_mean") is None:
        return (*head, *[""] * (len(COLUMNS) - 2))
    floor = max(x for name, x in row.items() if name.startswith("null_"))
    shown = (row["psnr_mean"], row["psnr_min"], row["psnr_max"], floor)
    return (*head, *[f"{x:.2f}" for x in shown], f"{row['label_recall']:.0%}")


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
