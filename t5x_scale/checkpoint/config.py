"""When a run saves, where, and what it keeps."""

from __future__ import annotations

import dataclasses

from t5x_scale.core import files
from t5x_scale.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep. All of it may be changed when a run is resumed.

    Attributes:
      save_every_steps: a step is due when it is a multiple of this; 0 saves only when forced, or by time.
      save_every_seconds: a step is due, too, when this much time has passed since the last save began; None never.
      check_time_every_steps: the time is looked at before steps that are multiples of this, in all processes alike.
      keep: newest checkpoints to keep; None keeps all. One more stays as long as no newer one is known to verify.
      keep_every_steps: multiples of this are kept for ever; None keeps none of them.
      asynchronous: whether writing goes on in the background.
      read_back: whether a committed checkpoint is read again in the background, by all processes together and without
        their devices, and compared with its fingerprints. Until that is done for a newer one, the newest checkpoint
        that is known to verify is not deleted; without it, that is the one that was restored.
      save_final: whether the loop saves its last step, due or not.
      max_failed_saves: the run goes on after a save that failed, and ends after this many of them in a row.
      local_directory: where each process keeps frequent saves of its own shards: memory (`/dev/shm/t5x_scale`) or a
        disk of its machine; None has none. See `local_tier`.
      local_every_steps: steps between saves there.
      local_keep: newest saves to keep there, beside one more.
    """

    save_every_steps: int = 1000
    save_every_seconds: float | None = None
    check_time_every_steps: int = 10
    keep: int | None = 3
    keep_every_steps: int | None = None
    asynchronous: bool = True
    read_back: bool = True
    save_final: bool = True
    max_failed_saves: int = 3
    local_directory: str | None = None
    local_every_steps: int = 100
    local_keep: int = 1

    def __post_init__(self) -> None:
        if self.save_every_steps < 0:
            raise UserError(f"CheckpointConfig.save_every_steps is {self.save_every_steps}; it must be 0 or more")
        for name in ("keep", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"CheckpointConfig.{name} is {value}; it must be 1 or more, or None")
        for name in ("check_time_every_steps", "max_failed_saves", "local_every_steps", "local_keep"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"CheckpointConfig.{name} is {value}; it must be 1 or more")
        if self.save_every_seconds is not None and not self.save_every_seconds > 0:
            raise UserError(f"CheckpointConfig.save_every_seconds is {self.save_every_seconds}; it must be above 0")
        if self.local_directory is not None and files.is_remote(self.local_directory):
            raise UserError(
                f"CheckpointConfig.local_directory is {self.local_directory}; it must be memory or a disk of the "
                "machine itself"
            )
