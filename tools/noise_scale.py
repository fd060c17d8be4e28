"""Says how large a batch a run could have used, from the noise of its gradients.

    python tools/noise_scale.py MODEL_DIR [--rows=10] [--decay=0.99]

The run must have recorded it (`StepConfig.noise_scale = True`, with micro-batches). Printed are, along the run, its
loss, its batch and the noise scale (McCandlish et al. 2018), both in tokens with a loss, and the steps that twice the
batch would take of those that it takes: 50 % where the batch is small, 100 % where it is larger than anyone needs.
"""

from __future__ import annotations

import argparse
import sys

from t5x_scale.core.errors import UserError
from t5x_scale.monitor.metric_log import log_path, read_metrics
from t5x_scale.planner.hindsight import NOISE, noise_along


def print_noise_scale(model_dir: str, rows: int, decay: float) -> None:
    """Prints the table.

    Raises:
      UserError: the run recorded no noise.
    """
    log = read_metrics(model_dir)
    moments = noise_along(log, rows, decay)
    if not moments:
        raise UserError(f"{log_path(model_dir)} has no {NOISE}: train with step.StepConfig.noise_scale = True")
    print(f"{'step':>9} {'loss':>9} {'batch':>11} {'noise scale':>12} {'steps at twice the batch':>25}")
    for moment in moments:
        twice = moment.steps_at(2.0)
        ratio = f"{'?':>25}" if twice is None else f"{twice:25.0%}"
        print(f"{moment.step:>9} {moment.loss:>9.4f} {moment.batch:>11.4g} {moment.scale:>12.4g} {ratio}")


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
