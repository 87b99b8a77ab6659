"""How long this process has been compiling."""

import threading
import time

import jax.monitoring

_OF = ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
_EVENTS = tuple(f"/jax/core/compile/{name}_duration" for name in _OF)


class _Watch:
    """Adds up spans of time; of those that overlap, each moment once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.total = self.end = 0.0

    def __call__(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if event not in _EVENTS:
            return
        with self.lock:  # threads compile side by side
            now = time.monotonic()
            self.total += max(0.0, now - max(now - duration_secs, self.end))
            self.end = now


_WATCH = _Watch()
jax.monitoring.register_event_duration_secs_listener(_WATCH)


def seconds() -> float:
    """Returns the seconds of tracing and compiling since this module was imported."""
    return _WATCH.total
