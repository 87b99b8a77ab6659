"""What every command line does first."""

import logging
import os
import pathlib

import jax


def quiet_and_cached() -> None:
    """Silences notices of no use here, and keeps compiled programs between runs.

    The cache is in XDG_CACHE_HOME, by default ~/.cache/invertjax; JAX's own variable
    JAX_COMPILATION_CACHE_DIR, where set, wins.
    """
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        cache = pathlib.Path(home) / "invertjax" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
