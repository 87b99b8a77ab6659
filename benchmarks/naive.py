"""JAX as one writes it first, as a contestant: see `protocol`.

`lax.conv` as flax emits it, the gradient of a gradient, `vmap` over the trials, and a
Python loop over a jitted step.
"""

import collections
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import jax_problem, protocol
from benchmarks.problem_file import Problem, learning_rate

ITERATES = 3


def load(problem: Problem) -> protocol.Runner:
    """Compiles one step of all targets and restarts of a problem."""
    loss_fn, params, trials = jax_problem.read(problem)
    optimizer = optax.scale_by_adam()

    def objective(image, params, trial):
        batch = {"image": image, "label": trial["label"]}
        guess = jax.tree.leaves(jax.grad(loss_fn)(params, batch))
        wanted = jax.tree.leaves(trial["observed"])
        dot = sum(jnp.vdot(g, o) for g, o in zip(guess, wanted, strict=True))
        scale = optax.tree.norm(guess) * optax.tree.norm(wanted)
        down, right = (jnp.abs(jnp.diff(image, axis=axis)).mean() for axis in (1, 2))
        return 1 - dot / scale + trial["total_variation"] * (down + right)

    def step(state, rate, params, trial):
        image, adam, best, best_loss = state
        loss, gradient = jax.value_and_grad(objective)(image, params, trial)
        better = loss < best_loss
        direction, adam = optimizer.update(jnp.sign(gradient), adam)
        best = jnp.where(better, image, best)
        best_loss = jnp.minimum(loss, best_loss)
        return jnp.clip(image - rate * direction, 0, 1), adam, best, best_loss

    def init(image):
        return image, optimizer.init(image), image, jnp.inf

    over_restarts = jax.vmap(step, (0, None, None, None))
    start = time.perf_counter()
    states = jax.jit(jax.vmap(jax.vmap(init)))(trials["start"])
    jitted = jax.jit(jax.vmap(over_restarts, (0, None, None, 0)))
    stepped = jitted.lower(states, jnp.float32(0), params, trials).compile()
    facts = {"seconds_compile": time.perf_counter() - start}
    jax_problem.require_memory(stepped)

    def steps(n, trials):
        """The states after 1 to n steps."""
        state = states
        for i in range(n):
            state = stepped(
                state, np.float32(learning_rate(problem, i)), params, trials
            )
            yield state

    def last(n):
        (state,) = collections.deque(steps(n, trials), maxlen=1)
        return jax.block_until_ready(state)

    def check(total_variation):
        weight = jnp.full_like(trials["total_variation"], total_variation)
        chosen = {**trials, "total_variation": weight}
        one = jax.tree.map(lambda leaf: leaf[-1], chosen)
        value = jax.jit(jax.value_and_grad(objective))(one["start"][-1], params, one)
        iterates = [state[0][-1, -1] for state in steps(ITERATES, chosen)]
        return float(value[0]), value[1], np.stack(iterates)

    def run(n):
        begin = time.perf_counter()
        last(n)
        seconds = time.perf_counter() - begin
        return seconds, n * problem.labels.size * problem.starts.shape[1]

    def attack():
        begin = time.perf_counter()
        _, _, best, loss = last(problem.steps)
        seconds = time.perf_counter() - begin
        chosen = np.argmin(loss, axis=1)
        return seconds, np.asarray(best)[np.arange(len(best)), chosen]

    return protocol.Runner(facts, check, run, attack, jax_problem.memory)


if __name__ == "__main__":
    protocol.serve(load)
