"""A plain PyTorch loop, as a contestant: see `protocol`.

Standalone: needs torch and NumPy only. Restarts run one after another, as they do in
the published PyTorch codes. Layout and threads are PyTorch's own defaults;
`torch_tuned` takes the fastest.
"""
# pyright: reportMissingImports=false

import time

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import protocol, torch_models
from benchmarks.problem_file import Problem, learning_rate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ITERATES = 3


class Loop:
    """The attack on one problem. `layout`: a `torch.memory_format` of the images."""

    def __init__(self, problem: Problem, layout: torch.memory_format):
        self.problem, self.layout = problem, layout
        self.forward = torch_models.FORWARD[problem.model]
        self.params = {
            name: self._place(torch_models.from_problem(array)).requires_grad_()
            for name, array in problem.params.items()
        }
        self.labels = torch.from_numpy(problem.labels).long().to(DEVICE)

    def _place(self, tensor):
        if tensor.ndim == 4:
            return tensor.to(DEVICE, memory_format=self.layout)
        return tensor.to(DEVICE)

    def start(self, target, restart):
        start = torch.from_numpy(self.problem.starts[target, restart])
        # A copy: in one layout it would share the problem's memory.
        return start.permute(0, 3, 1, 2).clone(memory_format=self.layout).to(DEVICE)

    def objective(self, target, total_variation):
        """The function of the images to minimise."""
        observed = [
            torch_models.from_problem(array[target]).to(DEVICE)
            for array in self.problem.observed.values()
        ]
        length = _inner(observed, observed).sqrt()
        params, labels = tuple(self.params.values()), self.labels[target]
        mean, std = self.problem.mean, self.problem.std

        def value(image):
            logits = self.forward(self.params, (image - mean) / std)
            loss = F.cross_entropy(logits, labels)
            guess = torch.autograd.grad(loss, params, create_graph=True)
            down = (image[:, :, 1:] - image[:, :, :-1]).abs().mean()
            right = (image[..., 1:] - image[..., :-1]).abs().mean()
            cosine = _inner(guess, observed) / length / _inner(guess, guess).sqrt()
            return 1 - cosine + total_variation * (down + right)

        return value

    def run(self, target, restart, steps, total_variation, on_step=lambda image: None):
        """`(best images, their objective)` of one trial."""
        value = self.objective(target, total_variation)
        image = self.start(target, restart).requires_grad_()
        adam = torch.optim.Adam([image], fused=True)
        best, best_loss = image.detach().clone(), torch.tensor(torch.inf, device=DEVICE)
        for step in range(steps):
            adam.param_groups[0]["lr"] = learning_rate(self.problem, step)
            loss = value(image)
            (gradient,) = torch.autograd.grad(loss, image)
            with torch.no_grad():
                best = torch.where(loss < best_loss, image, best)
                best_loss = torch.minimum(loss, best_loss)
                # Fused Adam wants the layouts of image and gradient to be the same.
                image.grad = gradient.sign().contiguous(memory_format=self.layout)
                adam.step()
                image.clamp_(0, 1)
            on_step(image)
        return best, best_loss


def load(problem: Problem) -> protocol.Runner:
    """A problem with PyTorch's own settings."""
    return runner(Loop(problem, torch.contiguous_format), "contiguous, all threads")


def runner(loop: Loop, choice: str) -> protocol.Runner:
    """A loop as a contestant. choice: in words, the settings."""
    torch.set_float32_matmul_precision("high")  # as XLA's default on the same GPU
    begin = time.perf_counter()
    problem = loop.problem
    targets, restarts = problem.starts.shape[:2]
    weight = problem.total_variation

    def check(total_variation):
        start = loop.start(-1, -1).requires_grad_()
        objective = loop.objective(-1, total_variation)(start)
        (gradient,) = torch.autograd.grad(objective, start)
        iterates = []
        watch = lambda image: iterates.append(_nhwc(image))  # noqa: E731
        loop.run(-1, -1, ITERATES, total_variation, watch)
        return objective.item(), _nhwc(gradient), np.stack(iterates)

    def run(n):
        # One trial after another: the pace of one is the pace of all.
        return timed(loop, n), n * problem.labels.shape[1]

    def attack():
        begin, found = time.perf_counter(), []
        for target in range(targets):
            runs = (loop.run(target, r, problem.steps, weight) for r in range(restarts))
            best, _ = min(runs, key=lambda run: float(run[1]))
            found.append(_nhwc(best))
        return time.perf_counter() - begin, np.stack(found)

    facts = {
        "seconds_compile": time.perf_counter() - begin,
        "version": torch.__version__,
        "choice": choice,
    }
    return protocol.Runner(facts, check, run, attack, memory)


def memory() -> int:
    """Peak bytes on the device: this process's own on a CPU."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_reserved()
    return protocol.resident_peak()


def timed(loop, n):
    _wait()
    begin = time.perf_counter()
    loop.run(0, 0, n, loop.problem.total_variation)
    _wait()
    return time.perf_counter() - begin


def _wait():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _inner(a, b):
    # Leaf by leaf: the float32 norm of one long vector is 2e-4 off on a CPU.
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def _nhwc(image):
    # A copy: the image moves on.
    return image.detach().permute(0, 2, 3, 1).cpu().numpy().copy()


if __name__ == "__main__":
    protocol.serve(load)
