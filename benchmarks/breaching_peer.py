"""`breaching` 0.1.2 as a contestant: see `protocol`.

Unmodified, on the same weights, updates, labels and, in `check`, start. What differs:
its total variation is of normalised pixels, over images continued by zeros (so checks
leave it out); restarts draw their own starts; it scores every restart once more.

Needs torch, torchvision, hydra-core and breaching.
"""
# pyright: reportMissingImports=false

import importlib.metadata
import sys
import time
import types

import numpy as np
import torch

from benchmarks import protocol, torch_loop, torch_models, torch_tuned
from benchmarks.problem_file import Problem

CONFIGS = {"inverting_gradients": "invertinggradients", "deep_leakage": "deepleakage"}
FEWEST = 50  # iterations a round, so that setting up does not count


def load(problem: Problem) -> protocol.Runner:
    """Prepares the attack; the problem's rate and weight in normalised units."""
    begin = time.perf_counter()
    breaching = _import()
    config = breaching.get_attack_config(CONFIGS[problem.attack])
    config.attack_type = "optimization"  # the labels are given
    peer = _Peer(problem, breaching, config)
    targets, restarts = problem.starts.shape[:2]
    weight = problem.total_variation

    def check(total_variation):
        # With one iteration in all, its schedule would start at the lowest rate.
        peer.set(steps=1, restarts=1, weight=total_variation, schedule=None)
        image, stats = peer.reconstruct(targets - 1, problem.starts[-1, -1])
        return stats["Trial_0_Val"][0], None, image[None]

    def run(n):
        peer.set(steps=n, restarts=restarts, weight=weight)
        begin = time.perf_counter()
        peer.reconstruct(0)
        seconds = time.perf_counter() - begin
        return seconds, n * restarts * problem.labels.shape[1]

    def attack():
        peer.set(steps=problem.steps, restarts=restarts, weight=weight)
        begin = time.perf_counter()
        found = [peer.reconstruct(target)[0] for target in range(targets)]
        return time.perf_counter() - begin, np.stack(found)

    def pace(threads):
        torch.set_num_threads(threads)
        peer.set(steps=5, restarts=1, weight=weight)
        begin = time.perf_counter()
        peer.reconstruct(0)
        return time.perf_counter() - begin

    pace(1)
    threads = min(torch_tuned.thread_counts(), key=pace)
    torch.set_num_threads(threads)
    facts = {
        "seconds_compile": time.perf_counter() - begin,
        "version": importlib.metadata.version("breaching"),
        "choice": f"{threads} threads",
        "fewest": FEWEST,
    }
    return protocol.Runner(facts, check, run, attack, torch_loop.memory)


class _Peer:
    """Their attacker with our problem in their types."""

    def __init__(self, problem: Problem, breaching, config):
        self.problem, self.breaching, self.config = problem, breaching, config
        self.setup = {"device": torch_loop.DEVICE, "dtype": torch.float32}
        self.model = _Model(problem).to(**self.setup)
        channels, height = problem.images.shape[-1], problem.images.shape[2]
        self.metadata = types.SimpleNamespace(
            modality="vision",
            shape=(channels, height, height),
            mean=[problem.mean] * channels,
            std=[problem.std] * channels,
        )

    def set(self, *, steps, restarts, weight, schedule: str | None = "step-lr"):
        """Changes the configuration; the weight is of pixels in [0, 1]."""
        optim, unit = self.config.optim, self.problem.std
        optim.max_iterations, self.config.restarts.num_trials = steps, restarts
        optim.callback = steps + 1  # no reports on the way
        if self.problem.attack == "deep_leakage":
            return  # L-BFGS with their rate, no schedule, no prior
        optim.step_size = self.problem.learning_rate / unit
        optim.step_size_decay = schedule
        self.config.regularization.total_variation.scale = weight * unit

    def reconstruct(self, target, start=None):
        """`([B, H, W, C] in [0, 1], their statistics)`."""
        attacker = self.breaching.attacks.prepare_attack(
            self.model, torch.nn.CrossEntropyLoss(), self.config, self.setup
        )
        payload = {
            "parameters": list(self.model.parameters()),
            "buffers": None,
            "metadata": self.metadata,
        }
        problem, device = self.problem, self.setup["device"]
        shared = {
            "gradients": [
                torch_models.from_problem(array[target]).to(device)
                for array in problem.observed.values()
            ],
            "buffers": None,
            "metadata": {
                "num_data_points": problem.labels.shape[1],
                "labels": torch.from_numpy(problem.labels[target]).long().to(device),
                "local_hyperparams": None,
            },
        }
        if start is not None:
            start = torch.from_numpy(start).permute(0, 3, 1, 2).contiguous()
            start = (start - problem.mean) / problem.std
        found, stats = attacker.reconstruct(
            [payload], [shared], {}, initial_data=start, dryrun=False
        )
        images = found["data"].permute(0, 2, 3, 1).cpu().numpy()
        return images * problem.std + problem.mean, stats


class _Model(torch.nn.Module):
    """A problem's network as a module, its parameters in the order of the update."""

    name = "benchmark"

    def __init__(self, problem: Problem):
        super().__init__()
        self.paths = list(problem.params)
        self.forward_fn = torch_models.FORWARD[problem.model]
        self.weights = torch.nn.ParameterList(
            torch_models.from_problem(array) for array in problem.params.values()
        )

    def forward(self, images):
        params = dict(zip(self.paths, self.weights, strict=True))
        return self.forward_fn(params, images)


_SCHEMAS: list[torch.library.Library] = []


def _import():
    """`breaching`, also where torchvision's wheel is of another build than torch."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # its operators are missing: their schemas suffice
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou) -> Tensor")
        _SCHEMAS.append(library)  # they live as long as it does
    import breaching

    return breaching


if __name__ == "__main__":
    protocol.serve(load)
