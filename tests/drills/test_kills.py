"""kill -9, two hundred times, in start-up, restore, steps and asynchronous saves, 40 times each or more: the run always
goes on, and ends as if nothing had happened. Where a kill fell is read from the phase log of the process."""

import collections
import os
import shutil
import threading

from command_runner import CommandRunner, check_same_metrics, fingerprints
from kill_lane import Lane

KILLS, LANES, STEPS = int(os.environ.get("DRILL") or 200), 2, 600
SEED = 20_261_126


def test_killed_at_planned_moments(settings, tmp_path, record_property):
    settings = {**settings, "TRAIN_STEPS": STEPS, "CheckpointConfig__save_every_steps": 20}
    places = [tmp_path / f"streams_{number}" for number in range(LANES)]
    for place in places:
        place.mkdir()
    # A server of processes answers one question at a time.
    runners = [CommandRunner(place) for place in places]
    whole = tmp_path / "whole"
    runners[0].run("train", MODEL_DIR=str(whole), **settings)
    lanes = [Lane(runner, tmp_path / f"lane_{i}", settings, SEED + i) for i, runner in enumerate(runners)]
    try:
        kills = -(-KILLS // LANES)
        _run_together([lambda lane=lane: lane.kill_often(kills, -(-kills // 5)) for lane in lanes])
    finally:
        killed = sum((lane.killed for lane in lanes), collections.Counter())
        record_property("cases", killed.total())
        record_property("shown", ", ".join(f"{place} {killed[place]}" for place in sorted(killed)))
        for runner in runners:
            runner.close()
    finished = [run for lane in lanes for run in lane.finished]
    for run in finished:
        assert fingerprints(run, STEPS) == fingerprints(whole, STEPS), run
        check_same_metrics(run, whole)
        shutil.rmtree(run)
    record_property("passed", killed.total())
    print(f"{len(finished)} runs of {STEPS} steps, all equal to the one that was not disturbed")


def _run_together(functions):
    """Calls functions at the same time, each in a thread; the first failure of any is raised."""
    failures = []

    def call(function):
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
