import jax


def gradient(loss_fn, **k):
    return lambda params, batch, key: jax.grad(loss_fn)(params, batch)
