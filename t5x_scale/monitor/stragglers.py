"""Which host holds the others up.

All processes of a run step together, so that everyone's step takes as long as the slowest's and says nothing about who
that is. What each is compared by is therefore its own: how long it waited for data, the processor's time its host took
to dispatch a step, and a fixed piece of work timed now and then, on its host and on each of its devices.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_scale.core.checks import check_above, check_seconds, check_whole

DATA, DISPATCH, HOST_PROBE, DEVICE_PROBE = "data", "dispatch", "host_probe", "device_probe"
# How each is said of a host.
MEASURES = {
    DATA: "waiting for data",
    DISPATCH: "dispatching a step",
    HOST_PROBE: "a fixed piece of work on its processor",
    DEVICE_PROBE: "a fixed piece of work on a device",
}
_OF_A_STEP = (DATA, DISPATCH)


@dataclasses.dataclass(frozen=True)
class StragglerConfig:
    """When a host is called slow.

    Attributes:
      factor: times what its peers take in the middle.
      least_share: of the time of a step, for waiting and dispatching: less is not worth a word.
      window_seconds: over which waiting and dispatching are averaged.
      probe_every_steps: between two timings of fixed work, for which the devices are let run dry: some tens of
        milliseconds. 0 does without, and so does a process on its own, which has nobody to be compared with.
    """

    factor: float = 2.0
    least_share: float = 0.2
    window_seconds: float = 60.0
    probe_every_steps: int = 1000

    def __post_init__(self) -> None:
        check_above(self, 1, "factor")
        check_above(self, 0, "least_share")
        check_seconds(self, "window_seconds")
        check_whole(self, 0, "probe_every_steps")


@dataclasses.dataclass(frozen=True)
class HostTimes:
    """What a process tells the others.

    Attributes:
      process: its number.
      host: the name of its machine.
      step_seconds: of a whole step, everyone's.
      seconds: {measure: seconds}, of a step or of a probe; what it does not know is left out.
      slowest_device: which of its devices took the longest in the probe, by its id.
    """

    process: int
    host: str
    step_seconds: float
    seconds: Mapping[str, float]
    slowest_device: int | None = None

    def to_json(self) -> str:
        """As a line of JSON."""
        return json.dumps(dataclasses.asdict(self) | {"seconds": dict(self.seconds)})

    @classmethod
    def from_json(cls, text: str) -> HostTimes:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclasses.dataclass(frozen=True)
class Straggler:
    """A host that is slower than its peers by the factor, in one measure: its own seconds, and theirs in the middle."""

    process: int
    host: str
    measure: str
    seconds: float
    peers_seconds: float
    device: int | None = None

    @property
    def ratio(self) -> float:
        """How many times slower; at most 1000, since peers may take no time at all."""
        return min(self.seconds / max(self.peers_seconds, 1e-9), 1000.0)

    def render(self) -> str:
        """In a sentence."""
        place = "" if self.device is None else f" (device {self.device})"
        return (
            f"process {self.process} on {self.host} is slower than its peers: {MEASURES[self.measure]}{place} takes "
            f"{self.seconds:.3g} s where theirs takes {self.peers_seconds:.3g} s"
        )

    def to_event(self) -> dict[str, Any]:
        """As details of an event."""
        values = {"ratio": round(self.ratio, 2), **dataclasses.asdict(self)}
        return {name: value for name, value in values.items() if value is not None}


def find_stragglers(times: Sequence[HostTimes], config: StragglerConfig) -> list[Straggler]:
    """The hosts that are slow now, the worst measure of each, in order of processes. Needs two hosts or more."""
    found: dict[int, Straggler] = {}
    for measure in MEASURES:
        known = [host for host in times if measure in host.seconds]
        for host in known:
            others = [other.seconds[measure] for other in known if other is not host]
            if not others:
                continue
            own, peers = host.seconds[measure], statistics.median(others)
            least = config.least_share * host.step_seconds if measure in _OF_A_STEP else 0.0
            if own < config.factor * peers or own - peers < least or own == peers:
                continue
            device = host.slowest_device if measure == DEVICE_PROBE else None
            straggler = Straggler(host.process, host.host, measure, own, peers, device)
            # Of a slow processor everything is slow; of two measures the one that costs the run more says more.
            if host.process not in found or _is_worse(straggler, found[host.process]):
                found[host.process] = straggler
    return [found[process] for process in sorted(found)]


def _is_worse(one: Straggler, other: Straggler) -> bool:
    return (one.measure in _OF_A_STEP, one.ratio) > (other.measure in _OF_A_STEP, other.ratio)


class Naming:
    """Names hosts that stay slow: seen so in two looks in a row, and no longer when not seen so in two in a row."""

    def __init__(self, config: StragglerConfig):
        self._config = config
        self._before: set[int] = set()
        self.named: dict[int, Straggler] = {}

    def look(self, times: Sequence[HostTimes]) -> tuple[list[Straggler], list[Straggler]]:
        """Returns the hosts that are slow from now on, and those that no longer are, by what they were named for."""
        seen = {straggler.process: straggler for straggler in find_stragglers(times, self._config)}
        new = [seen[process] for process in sorted(seen.keys() & self._before - self.named.keys())]
        over = [self.named[process] for process in sorted(self.named.keys() - seen.keys() - self._before)]
        for straggler in over:
            del self.named[straggler.process]
        self.named |= {straggler.process: straggler for straggler in new}
        self.named |= {process: seen[process] for process in seen.keys() & self.named.keys()}
        self._before = set(seen)
        return new, over

    def render(self) -> str:
        """A few words for the status line; nothing if no host is slow."""
        if not self.named:
            return ""
        worst = max(self.named.values(), key=lambda straggler: straggler.ratio)
        more = f" +{len(self.named) - 1}" if len(self.named) > 1 else ""
        return f"slow: process {worst.process} ({worst.measure} {worst.ratio:.1f}x){more}"
