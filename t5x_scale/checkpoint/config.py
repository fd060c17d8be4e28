"""When a run saves, where, and what it keeps."""

from __future__ import annotations

import dataclasses
import os

from t5x_scale.core import files
from t5x_scale.core.checks import check_kind, check_seconds, check_whole
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
        check_whole(self, 0, "save_every_steps")
        check_whole(self, 1, "check_time_every_steps", "max_failed_saves", "local_every_steps", "local_keep")
        check_whole(self, 1, "keep", "keep_every_steps", may_be_none=True)
        check_seconds(self, "save_every_seconds", may_be_none=True)
        check_kind(self, bool, "asynchronous", "read_back", "save_final")
        if self.local_directory is not None:
            self._check_local_directory()

    def _check_local_directory(self) -> None:
        name, directory = "CheckpointConfig.local_directory", self.local_directory
        if not isinstance(directory, str | os.PathLike) or not os.path.isabs(os.path.expanduser(directory)):
            if isinstance(directory, str) and files.is_remote(directory):
                raise UserError(f"{name} is {directory}; it must be memory or a disk of the machine itself")
            raise UserError(f"{name} is {directory!r}; it must be a whole path, such as /dev/shm/t5x_scale, or None")
