"""Says how large a batch a run could have used, from the noise of its gradients.

    python tools/noise_scale.py MODEL_DIR [--rows=10] [--decay=0.99]

The run must have recorded it (`StepConfig.noise_scale = True`, with micro-batches). Printed are, along the run, its
loss, its batch and the noise scale (McCandlish et al. 2018), both in tokens with a loss, and the steps that twice the
batch would take of those that it takes: 50 % where the batch is small, 100 % where it is larger than anyone needs.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.mccandlish import noise_scale, steps_factor
from t5x_scale.monitor.metric_log import MetricLog, log_path, read_metrics
from t5x_scale.optim.noise_scale import METRICS


def print_noise_scale(model_dir: str, rows: int, decay: float) -> None:
    """Prints the table.

    Raises:
      UserError: the run recorded no noise.
    """
    log = read_metrics(model_dir)
    if missing := [name for name in METRICS if name not in log.series]:
        raise UserError(f"{log_path(model_dir)} has no {missing[0]}: train with step.StepConfig.noise_scale = True")
    steps = log.series[METRICS[0]].steps
    noise, signal, batch, loss = (_at(log, name, steps) for name in (*METRICS, "train/weight", "train/loss"))
    scale = noise_scale(noise, signal, decay)
    print(f"{'step':>9} {'loss':>9} {'batch':>11} {'noise scale':>12} {'steps at twice the batch':>25}")
    for row in np.unique(np.linspace(0, len(steps) - 1, rows + 1).astype(int))[1:]:
        ratio = f"{steps_factor(batch[row], scale[row], 2 * batch[row]):25.0%}" if scale[row] > 0 else f"{'?':>25}"
        print(f"{steps[row]:>9} {loss[row]:>9.4f} {batch[row]:>11.4g} {scale[row]:>12.4g} {ratio}")


def _at(log: MetricLog, name: str, steps: np.ndarray) -> np.ndarray:
    series = log.series[name]
    return series.values[np.searchsorted(series.steps, steps)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--decay", type=float, default=0.99, help="of the averages, a step (default 0.99)")
    options = parser.parse_args(arguments)
    if options.rows < 1 or not 0 <= options.decay < 1:
        parser.error("--rows must be at least 1, and --decay from 0 to below 1")
    try:
        print_noise_scale(options.model_dir, options.rows, options.decay)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
