"""Where a build runs, by name: on this machine, or through a runner of Apache Beam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data.building.shards import make_shards
from t5x_scale.data.building.work import Options
from t5x_scale.data.catalog import Catalog

LOCAL = "local"
# By the words people use; any other name goes to Beam as it is.
_BEAM_RUNNERS = {
    "direct": "DirectRunner",
    "dataflow": "DataflowRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
}


def make_builder(runner: str, catalog: Catalog, options: Sequence[str] = ()) -> Callable[..., object] | None:
    """What `Catalog.build` takes as its `builder`; None for this machine.

    Args:
      runner: "local", "direct", "dataflow", "flink", "spark", or the name of another of Beam's runners.
      catalog: whose sources are built.
      options: of the Beam pipeline, without dashes: "project=my_project".

    Raises:
      UserError: Beam is not installed, or options were given that nobody reads.
    """
    if runner == LOCAL:
        if options:
            raise UserError(f"--beam_option={options[0]} needs a --runner of Beam: {', '.join(_BEAM_RUNNERS)}")
        return None
    try:
        from t5x_scale.data.building.beam import build_with_beam
    except ImportError as error:
        raise UserError(
            f"the runner '{runner}' needs Apache Beam, which cannot be imported ({error}): install t5x_scale[beam] in "
            "an environment of its own, or use --runner=local"
        ) from error
    pipeline = [f"--runner={_BEAM_RUNNERS.get(runner.lower(), runner)}", *(f"--{option}" for option in options)]

    def build(name: str, split: str, directory: files.Path, work: Options, **facts: Any) -> None:
        shards = make_shards(name, split, catalog.vocabulary, catalog.task_modules)
        build_with_beam(shards, directory, work, pipeline_options=pipeline, **facts)

    return build
