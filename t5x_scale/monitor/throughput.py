"""How fast a run goes and where its time is spent, from the times at which steps were seen to be complete.

Two conventions of model FLOPs utilisation are kept apart. `mfu` is PaLM's (Chowdhery et al. 2022, appendix B): 6N
plus the attention matmuls over the *full* square, no rematerialisation; `mfu_causal` counts the half of the square
that a causal mask leaves, as MegaScale prints it. The FLOPs per token come from the model's own accounting.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Hashable, Iterator, Mapping

from t5x_scale.monitor.phases import COMPILE, DATA_WAIT, PHASES, REWIND, STARTUP, STEP, Listener

# Of this process so far: what the shares are shares of.
SECONDS = "goodput/seconds"
_RECENT_INTERVALS = 16


@dataclasses.dataclass(frozen=True)
class Rates:
    """Speed over one interval of steps; `None` where a number is not known.

    Attributes:
      step: the last completed step of the interval.
      steps: steps in the interval.
      seconds_per_step: waiting for data included, pauses (evaluation, checkpoints) not.
      tokens_per_second: of the whole system.
      mfu: model FLOPs utilisation with full attention, as PaLM counts it.
      mfu_causal: the same with causal attention.
      data_wait_fraction: share of the interval in which the host waited for a batch. A wait that the steps already
        dispatched to the device cover costs nothing, so this is an upper bound of the time lost.
    """

    step: int
    steps: int
    seconds_per_step: float
    tokens_per_second: float
    mfu: float | None
    mfu_causal: float | None
    data_wait_fraction: float

    def to_metrics(self) -> dict[str, float]:
        """The known numbers under their metric names."""
        values = {
            "throughput/seconds_per_step": self.seconds_per_step,
            "throughput/tokens_per_second": self.tokens_per_second,
            "throughput/mfu": self.mfu,
            "throughput/mfu_causal": self.mfu_causal,
            "throughput/data_wait_fraction": self.data_wait_fraction,
        }
        return {name: value for name, value in values.items() if value is not None}


class Throughput:
    """Turns completion times into rates.

    The caller reports a step when its *result* has arrived on the host: the time of a dispatch says nothing. The time
    up to the first report (the first steps, compilation apart) is start-up and enters no rate.
    """

    def __init__(
        self,
        tokens_per_step: int,
        *,
        flops_per_token: float | None = None,
        flops_per_token_causal: float | None = None,
        peak_flops_per_device: float | None = None,
        device_count: int = 1,
        listener: Listener | None = None,
        before: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Starts the clock.

        Args:
          tokens_per_step: positions of one global batch (batch size x length).
          flops_per_token: forward and backward model FLOPs per token with full attention: 6N + 12LHQT.
          flops_per_token_causal: the same with causal attention.
          peak_flops_per_device: see `peaks.peak_flops`; None leaves the utilisations out.
          device_count: devices of the whole system.
          listener: is told what the loop is at.
          before: seconds of this process before now, by what they went to.
          clock: seconds from any origin; must not run backwards.
        """
        self._tokens_per_step = tokens_per_step
        self._flops = flops_per_token
        self._flops_causal = flops_per_token_causal
        self._peak = peak_flops_per_device * device_count if peak_flops_per_device else None
        self._clock = clock
        self._listener = listener
        self._last_time = clock()
        self._last_step: int | None = None
        self._paused = 0.0  # Since the last report.
        self._waited = 0.0  # Since the last report.
        self._recent: collections.deque[tuple[int, float]] = collections.deque(maxlen=_RECENT_INTERVALS)
        self._seconds: dict[str, float] = {**dict.fromkeys(PHASES, 0.0), **(before or {})}
        self._started = self._last_time - sum(self._seconds.values())
        self._pauses_before_steps = 0.0
        self._dispatched: set[Hashable] = set()
        self._host_seconds, self._waited_seconds, self._dispatches = 0.0, 0.0, 0

    def completed(self, step: int, tokens: int | None = None) -> Rates | None:
        """Reports that the results of every step up to `step` have arrived.

        Args:
          step: number of the step (the first step of a run is 1).
          tokens: tokens since the last report, where a batch-size schedule makes them differ from `tokens_per_step`
            a step.

        Returns:
          The rates since the last report; None for the first report and for one that brings no new step.
        """
        if self._last_step is not None and step <= self._last_step:
            return None
        now = self._clock()
        seconds = now - self._last_time - self._paused
        first, steps = self._last_step is None, step - (self._last_step or 0)
        waited = min(self._waited, seconds)
        self._seconds[STARTUP if first else STEP] += seconds - waited
        self._seconds[DATA_WAIT] += waited
        if first:
            self._pauses_before_steps = self._pause_seconds()
        self._last_time, self._last_step, self._paused, self._waited = now, step, 0.0, 0.0
        if first or seconds <= 0:
            return None
        if self._listener is not None:
            self._listener.measured(steps, seconds)
        self._recent.append((steps, seconds))
        rate = (steps * self._tokens_per_step if tokens is None else tokens) / seconds
        return Rates(
            step=step,
            steps=steps,
            seconds_per_step=seconds / steps,
            tokens_per_second=rate,
            mfu=self._utilisation(rate, self._flops),
            mfu_causal=self._utilisation(rate, self._flops_causal),
            data_wait_fraction=waited / seconds,
        )

    def moved_back(self, step: int) -> None:
        """The run goes on from `step`, which it was beyond: time since the last report was lost to the rewind."""
        now = self._clock()
        self._seconds[REWIND] += now - self._last_time - self._paused
        self._last_time, self._paused, self._waited = now, 0.0, 0.0
        if self._last_step is not None:
            self._last_step = step

    @contextlib.contextmanager
    def data_wait(self, step: int | None = None) -> Iterator[None]:
        """Counts the time inside as waiting for the batch of `step`; it stays part of the step time."""
        self._enter(DATA_WAIT, step)
        start = self._clock()
        try:
            yield
        finally:
            waited = self._clock() - start
            self._waited += waited
            self._waited_seconds += waited
            self._enter(STEP)

    @contextlib.contextmanager
    def dispatch(self, shape: Hashable = None) -> Iterator[None]:
        """Around the call of a compiled step, which compiles it first for a `shape` of batch not seen before."""
        if shape not in self._dispatched:
            with self.pause(COMPILE):
                yield
            if not self._dispatched:
                self._waited_seconds = 0.0  # For the first batch everybody waits.
            self._dispatched.add(shape)
            return
        # The processor's time of this thread: what it spends in waiting for other processes is not its own work.
        start = time.thread_time()
        try:
            yield
        finally:
            self._host_seconds += time.thread_time() - start
            self._dispatches += 1

    @contextlib.contextmanager
    def pause(self, kind: str, step: int | None = None) -> Iterator[None]:
        """Takes the time inside out of the step time and counts it under `kind` (`EVALUATION`, `CHECKPOINT`, ...).

        `step` is the number of steps done, for the listener.

        Enter it only when the last dispatched step is complete (wait for its result first): steps that finish inside a
        pause would cost no time, and the step time would come out too short.
        """
        before = self._enter(kind, step)
        start = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - start
            self._paused += seconds
            self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds
            self._enter(before)

    def own_times(self) -> tuple[int, float, float]:
        """(steps dispatched since the start, their seconds of waiting for data, their seconds of work on this host).

        Nobody else's slowness is in these: of a step's time, which all processes of a run share, every one is guilty.
        Compiling is left out.
        """
        return self._dispatches, self._waited_seconds, self._host_seconds

    def eta(self, total_steps: int) -> float | None:
        """Seconds until `total_steps` at the recent step time, with pauses as frequent as so far; None at first."""
        if not self._recent or self._last_step is None:
            return None
        per_step = sum(seconds for _, seconds in self._recent) / sum(steps for steps, _ in self._recent)
        stepping = max(self._seconds[STEP] + self._seconds[DATA_WAIT], 1e-9)
        pauses = self._pause_seconds() - self._pauses_before_steps
        return max(total_steps - self._last_step, 0) * per_step * (1.0 + pauses / stepping)

    def seconds(self) -> dict[str, float]:
        """Seconds since the start by what they went to, `phases.PHASES` and `other`: what has not been reported yet.

        The goodput of this process is `step` over the sum.
        """
        total = self._clock() - self._started
        return {**self._seconds, "other": max(total - sum(self._seconds.values()), 0.0)}

    def to_metrics(self) -> dict[str, float]:
        """`goodput/<kind>_fraction`, shares of the time since the start that add up to 1, and that time."""
        seconds = self.seconds()
        total = sum(seconds.values())
        if total <= 0:
            return {}
        return {**{f"goodput/{kind}_fraction": value / total for kind, value in seconds.items()}, SECONDS: total}

    def _pause_seconds(self) -> float:
        return sum(value for kind, value in self._seconds.items() if kind not in (STARTUP, STEP, DATA_WAIT))

    def _enter(self, phase: str | None, step: int | None = None) -> str | None:
        return None if self._listener is None or phase is None else self._listener.enter(phase, step)

    def _utilisation(self, tokens_per_second: float, flops_per_token: float | None) -> float | None:
        if self._peak is None or flops_per_token is None:
            return None
        return tokens_per_second * flops_per_token / self._peak
