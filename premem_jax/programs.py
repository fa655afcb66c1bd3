"""Compiled programs and an honest clock: what is compiled, what is run, and how long each takes."""

import contextlib
import functools
import os
import time

import jax


class Clock:
    """Seconds by phase. Phases nest and are exclusive: while an inner one runs, the outer one stands still."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str):
        self._charge()
        self._stack.append(phase)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def _charge(self):
        now = time.perf_counter()
        phase = self._stack[-1] if self._stack else "other"
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now

    def read(self) -> dict[str, float]:
        """Seconds so far, by phase."""
        self._charge()
        return dict(self.seconds)


class Profile:
    """JAX's profiler over `steps` updates after update `start`, into `folder`, for TensorBoard or Perfetto."""

    def __init__(self, folder: str | os.PathLike, start: int = 0, steps: int = 0):
        self._folder, self._first, self._last, self._running = str(folder), start + 1, start + steps, False

    def before(self, step: int) -> None:
        """Called before update `step` is dispatched, with those before it done where the window begins or ends."""
        if step == self._first <= self._last:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif step > self._last:
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


class Program:
    """A jitted function that compiles once per argument shapes and mesh, in the phase `compile` of the clock.

    Programs made of the same function, with equal hashable arguments bound by `functools.partial`, share what they have
    compiled: in a process that finetunes many times, each shape is compiled once.
    """

    def __init__(self, function, clock: Clock, **jit_options):
        self._clock = clock
        self.jitted, self._compiled = _shared(function, jit_options)

    def __call__(self, *args):
        kind = lambda x: (x.shape, x.dtype, getattr(getattr(x, "sharding", None), "mesh", None))
        key = jax.tree.structure(args), tuple(map(kind, jax.tree.leaves(args)))
        if key not in self._compiled:
            with self._clock("compile"):
                self._compiled[key] = self.jitted.lower(*args).compile()
        return self._compiled[key](*args)


_programs: dict = {}


def _shared(function, options: dict) -> tuple:
    """The jitted function, and what it has compiled so far by the shapes of its arguments."""
    if isinstance(function, functools.partial):
        leaves, structure = jax.tree.flatten(options)
        bound = function.func, function.args, tuple(sorted(function.keywords.items()))
        with contextlib.suppress(TypeError):  # something that is bound has no hash
            return _programs.setdefault((bound, structure, tuple(leaves)), (jax.jit(function, **options), {}))
    return jax.jit(function, **options), {}
