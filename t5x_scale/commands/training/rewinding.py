"""Where a run goes back to after a spike, and what it jumps over: a decision from what is known to all processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from t5x_scale.checkpoint.timeline import Intervention, Rows
from t5x_scale.core.errors import UserError
from t5x_scale.monitor.spikes import STOP, Spike, SpikeGuard


def plan_rewind(
    guard: SpikeGuard,
    spike: Spike,
    saved: Sequence[int],
    before: Sequence[Intervention],
    row_interval: Callable[[int, int], Rows],
) -> Intervention:
    """The intervention that a spike asks for.

    The checkpoint is the newest at least `rewind_steps` before the spike. From it to the first batch that is jumped
    over the run repeats itself bit for bit, so that any checkpoint of before gives the same course. Where there is
    none, as early in a run, it is the oldest one before the spike, or the beginning; batches from before it, which it
    has learnt from, cannot be jumped over.

    Args:
      guard: see `SpikeGuard`.
      spike: what was found.
      saved: the steps that have checkpoints.
      before: the interventions so far.
      row_interval: from steps [first, end) to the global rows of their batches.

    Raises:
      UserError: the run shall stop here; says why.
    """
    _check_may_rewind(guard, spike, before)
    wanted = spike.step - guard.rewind_steps
    earlier = [step for step in saved if step <= spike.step]
    early_enough = [step for step in earlier if step <= wanted]
    back = max(early_enough) if early_enough else min(earlier, default=0)
    first = max(spike.step - guard.skip_before, back)
    return Intervention(
        number=len(before) + 1,
        spike_step=spike.step,
        reason=spike.reason,
        rewind_to=back,
        skip_rows=(row_interval(first, spike.step + guard.skip_after),),
        time=time.time(),
    )


def _check_may_rewind(guard: SpikeGuard, spike: Spike, before: Sequence[Intervention]) -> None:
    nearby = [other for other in before if abs(other.spike_step - spike.step) <= guard.rewind_steps]
    if guard.policy == STOP:
        why = "SpikeGuard.policy is 'stop'"
    elif len(before) >= guard.max_rewinds:
        why = f"the run has gone back {len(before)} times, which SpikeGuard.max_rewinds allows"
    elif len(nearby) >= guard.max_rewinds_nearby:
        why = (
            f"going back {len(nearby)} times to about here did not help (SpikeGuard.max_rewinds_nearby): look at the "
            "learning rate, or at the data of other steps"
        )
    else:
        return
    raise UserError(
        f"stopped by a spike that began at step {spike.step}: {spike.reason}; {why}. Nothing was saved since; the same "
        "command goes on from the newest checkpoint, and SpikeGuard.policy = 'warn' lets a spike pass"
    )
