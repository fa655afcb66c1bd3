"""Compiled programs, and a clock that separates compilation from execution."""

import contextlib
import functools
import os
import time

import jax


class Clock:
    """Seconds by phase. Phases nest and are exclusive: an inner phase pauses the outer one."""

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
    """Runs JAX's profiler for `steps` updates after update `start`; writes to `folder`, for TensorBoard or Perfetto."""

    def __init__(self, folder: str | os.PathLike, start: int = 0, steps: int = 0):
        self._folder, self._first, self._last, self._running = str(folder), start + 1, start + steps, False

    def before(self, step: int) -> None:
        """Call before update `step` is dispatched. Waits for earlier updates where the window begins or ends."""
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
    """A jitted function that compiles once per mesh and argument shapes, in the clock's phase `compile`.

    Programs of the same function share compiled code if the arguments bound by `functools.partial` are hashable and
    equal. A process with many finetunes compiles each shape once.
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
    """The jitted function, and its compiled programs by argument shapes."""
    if isinstance(function, functools.partial):
        leaves, structure = jax.tree.flatten(options)
        bound = function.func, function.args, tuple(sorted(function.keywords.items()))
        with contextlib.suppress(TypeError):  # something that is bound has no hash
            return _programs.setdefault((bound, structure, tuple(leaves)), (jax.jit(function, **options), {}))
    return jax.jit(function, **options), {}
