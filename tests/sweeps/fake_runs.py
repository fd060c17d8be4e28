"""Runs that nobody trained: the files of a MODEL_DIR, with a loss that a law says."""

import json

from t5x_scale.monitor.metric_log import format_event, format_metrics

TABLE = """\
parameter                           shape           dtype    axes  partition  count
token_embedder/embedding            640 x {d}         float32  vocab, embed  -, -  0
decoder/layers/mlp/wi_0/kernel      {n} x {d} x {f}     float32  layers, embed, mlp  -, -, -  0
decoder/final_norm/scale            {d}              float32  embed  -  0

total: 0 parameters in 3 arrays; mesh: one device

data: …
"""


def write_run(directory, width=16, layers=2, inner=64, steps=10, batch=128, trained=None, losses=None, epochs=1.0):
    """A run of `layers` matrices of [width, inner]; `losses` by source, which have equal shares."""
    directory.mkdir(parents=True)
    config = {"class": "ModelConfig", "num_layers": layers, "embed_dim": width, "mlp_dim": inner, "num_heads": 2,
              "num_kv_heads": 1, "head_dim": 8, "vocab_size": 640}  # fmt: skip
    record = {
        "free": {"train_steps": steps, "sequence_length": 32, "vocabulary": "bytes"},
        "refused": {"model": {"decoder": {"class": "DecoderStack", "config": config}}},
    }
    (directory / "run.json").write_text(json.dumps(record))
    (directory / "model-info.txt").write_text(TABLE.format(d=width, n=layers, f=inner))
    losses = losses or {"code": 3.0}
    lines = [format_event(0, 1.0, "start", {})]
    for step in range(1, (trained or steps) + 1):
        seen = step * batch
        parts = {f"data/{name}/tokens": seen / len(losses) for name in losses}
        parts |= {f"data/{name}/epochs": epochs * step / steps for name in losses}
        values = {"train/loss": 4.0 - step / 10, "train/tokens": seen, "optim/learning_rate": 0.01 * step, **parts}
        lines.append(format_metrics(step, 1.0 + step, values))
    lines.append(format_metrics(steps, 99.0, {f"eval/{name}/loss": loss for name, loss in losses.items()}))
    (directory / "metrics").mkdir()
    (directory / "metrics" / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return str(directory)
