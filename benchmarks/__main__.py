"""Speed, beside the peers where they are installed.

    python -m benchmarks [--quick] [--peers PYTHON] [--models lenet ...] [--out FOLDER]
    python -m benchmarks --cells lenet_b1_r64 convnet5_b8

Everything in one run, on identical problems, contestants in turn. Writes latest.json
(flat keys), latest.md and latest.png into --out after every cell.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

from benchmarks import cells, field, measure, plot, quality, report, scaling
from benchmarks.worker import ROOT, Failed, Worker

HERE = ROOT / "benchmarks" / "results"
PEERS = ROOT / ".venv-peers" / "bin" / "python"
QUALITY_MODELS = ("cnn", "convnet5")


class Record:
    """What is known so far, on disk after every addition."""

    def __init__(self, out: pathlib.Path):
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.flat, self.machine = out, {}, []

    def add(self, found: dict) -> None:
        self.flat |= found
        if "matrix_peak_flops_per_second" in self.flat:
            self.flat |= report.derived(self.flat)
        content = json.dumps(self.flat, indent=1)
        (self.out / "latest.json").write_text(content, "utf-8")
        (self.out / "latest.md").write_text(self.text(), "utf-8")

    def text(self) -> str:
        return report.text(self.flat, self.machine)

    def plot(self) -> None:
        try:
            plot.draw(self.flat, self.out / "latest.png")
        except ImportError as error:
            name = self.out / "latest.json"
            _say(f"no picture ({error}): later, python -m benchmarks.plot {name}")


def main() -> None:
    arguments = _parse()
    begin = time.perf_counter()
    record = Record(arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        contestants = field.gather(str(arguments.peers), pathlib.Path(folder))
        for name, reason in contestants.missing.items():
            _say(f"without {name}: {reason}")
        _machine(contestants, record)
        _cells(arguments, contestants, record)
        _quality(arguments, contestants, record)
        if arguments.devices:
            _say(f"weak scaling: {arguments.devices}")
            record.add(scaling.measure(tuple(arguments.devices), contestants))
    record.add({"seconds_in_all": time.perf_counter() - begin})
    record.plot()
    print(record.text())


def _machine(contestants, record):
    with Worker("benchmarks.peak", log=contestants.folder / "peak.log") as worker:
        found = worker.ask("machine")
        record.machine = list(found)
        peak = worker.ask("products")["flops_per_second"]
    record.add({**found, "matrix_peak_flops_per_second": peak})
    _say(f"{found['device']}: {peak / 1e9:.0f} GFLOP/s in matrix products")


def _cells(arguments, contestants, record):
    wanted = cells.QUICK if arguments.quick else cells.full(cells.MODELS)
    wanted = tuple(map(cells.parse, arguments.cells)) or wanted
    bench = measure.Bench(contestants, measure.Settings())
    for cell in (cell for cell in wanted if cell.model in arguments.models):
        names = ["engine", "torch", "torch_tuned"]
        if not arguments.quick or cell.name == "convnet5_b1_r8":
            names.append("naive")
        if cell.targets == 1 and (
            cell.name == "lenet_b1_r8" if arguments.quick else cell.restarts <= 8
        ):
            names.append("breaching")
        try:
            found = bench.cell(cell, tuple(names), warm=cell.images == 1)
        except Failed as error:
            found = {f"{cell.name}_skipped": str(error)}
        record.add(found)
        ratios = {k: f"{v:.2f}" for k, v in found.items() if "_vs_" in k}
        _say(f"{cell.name}: {ratios or found}")


def _quality(arguments, contestants, record):
    plan = quality.QUICK if arguments.quick else quality.Plan()
    if arguments.cells:
        return
    wanted = QUALITY_MODELS[:1] if arguments.quick else QUALITY_MODELS
    for model in (name for name in wanted if name in arguments.models):
        _say(f"{model}: seconds to {plan.levels} dB")
        record.add(quality.measure(model, contestants, plan))


def _parse():
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="the main cells only")
    parser.add_argument(
        "--peers", default=PEERS if PEERS.exists() else sys.executable, metavar="PYTHON"
    )
    parser.add_argument("--models", nargs="+", default=cells.MODELS, metavar="MODEL")
    parser.add_argument("--cells", nargs="+", default=(), metavar="CELL")
    parser.add_argument("--out", type=pathlib.Path, default=HERE, metavar="FOLDER")
    parser.add_argument("--devices", type=int, nargs="*", metavar="K")
    arguments = parser.parse_args()
    try:
        wanted = [cells.parse(name).model for name in arguments.cells]
    except ValueError as error:
        parser.error(str(error))
    unknown = {*arguments.models, *wanted} - set(cells.MODELS)
    if unknown:
        parser.error(
            f"unknown {sorted(unknown)}: choose from {', '.join(cells.MODELS)}"
        )
    if arguments.devices is None:
        arguments.devices = () if arguments.cells else (1, 2, 4, 8)
        if arguments.quick:
            arguments.devices = (1, 2)
    return arguments


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
