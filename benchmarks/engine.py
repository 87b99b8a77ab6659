"""This engine as a contestant: see `protocol`."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import jax_problem, protocol
from benchmarks.problem_file import Problem
from invertjax import attacks, candidates, clients, distances, driver, matching, priors
from invertjax.driver import layout

ITERATES = 3


def load(problem: Problem) -> protocol.Runner:
    """Compiles the attack on all targets and restarts of a problem."""
    loss_fn, params, trials = jax_problem.read(problem)
    targets, restarts = problem.starts.shape[:2]
    side = problem.images.shape[2]
    net = jax_problem.network(problem.model, side, problem.mean, problem.std)

    def candidate(trial):
        return candidates.pixels(
            problem.images.shape[1:],
            trial["label"],
            # The key is the number of the start: nothing is drawn.
            init=lambda key, _: trial["start"][jax.random.key_data(key)[-1]],
        )

    def client(params, **options):
        simulate = clients.gradient(loss_fn, **options)
        return clients.at(simulate, params, jax.random.key(0))

    def make_attack(params, trial):
        second_order = {
            "gauss_newton": attacks.gauss_newton,
            "recursive": functools.partial(
                attacks.recursive, params=params, blocks=net.blocks, iterations=200
            ),
        }
        if problem.attack in second_order:
            return second_order[problem.attack](
                client(params, rule="plain"),
                trial["observed"],
                candidate(trial),
                steps=problem.steps,
            )
        return attacks.inverting_gradients(
            client(params),
            trial["observed"],
            candidate(trial),
            steps=problem.steps,
            learning_rate=problem.learning_rate,
            total_variation=trial["total_variation"],
        )

    keys = jax.vmap(jax.random.key)(jnp.arange(restarts))
    keys = jnp.broadcast_to(keys, (targets, restarts))
    start = time.perf_counter()
    program = driver.build(make_attack, params, trials, keys)
    seconds_compile = time.perf_counter() - start
    jax_problem.require_memory(program.advance)
    sides, count = program.layout, len(keys)
    shared = layout.place(params, sides.mesh)

    def group(trials, end):
        rows = range(count - program.width, count) if end else range(program.width)
        return layout.group(sides, trials, keys, rows)

    def steps(n):
        """n iterations for every trial of a group."""
        n = np.full((sides.targets, sides.restarts), n, np.int32)
        return layout.place(n, sides.mesh, layout.ROWS, layout.COLUMNS)

    def check(total_variation):
        weight = np.full(count, total_variation, np.float32)
        chosen = {**trials, "total_variation": weight}
        one = jax.tree.map(lambda leaf: leaf[-1], chosen)

        def objective(z, params, trial):
            weight = priors.total_variation(trial["total_variation"])
            value = matching.objective(
                client(params),
                trial["observed"],
                candidate(trial),
                distances.cosine,
                weight,
            )
            return value(z, jnp.zeros(()))

        z = {"image": one["start"][-1]}
        # Params are arguments, as in the program that is timed, not constants.
        value, gradient = jax.jit(jax.value_and_grad(objective))(z, params, one)
        chosen, key = group(chosen, end=True)
        state = program.init(shared, chosen, key)
        iterates = []
        for _ in range(ITERATES):
            state = program.advance(shared, chosen, state, steps(1))
            last = (
                program.width - 1,
                restarts - 1,
            )  # of the group, before it is filled up
            iterates.append(np.asarray(state.z["image"])[last])
        return float(value), gradient["image"], np.stack(iterates)

    def run(n):
        trial, key = group(trials, end=False)
        state = jax.block_until_ready(program.init(shared, trial, key))
        taken = jax.block_until_ready(steps(n))
        begin = time.perf_counter()
        jax.block_until_ready(program.advance(shared, trial, state, taken))
        seconds = time.perf_counter() - begin
        return seconds, n * program.width * restarts * problem.images.shape[1]

    def attack():
        done = driver.run(program, params, trials, keys)
        return done.seconds, driver.best(done.results).batch["image"]

    # A closed form is finished once it has started: nothing to count there.
    flops = (program.advance.cost_analysis() or {}).get("flops", 0.0)
    facts = {
        "seconds_compile": seconds_compile,
        # XLA counts the body of a loop once: one iteration of the trials at once.
        "flops": flops / (program.layout.at_once * problem.images.shape[1]),
    }
    return protocol.Runner(facts, check, run, attack, jax_problem.memory)


if __name__ == "__main__":
    protocol.serve(load)
