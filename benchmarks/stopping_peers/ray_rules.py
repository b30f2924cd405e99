"""Ray Tune's MedianStoppingRule and ASHA on recorded curves: run by the interpreter of its own environment.

stdin and stdout as in lightning_rules.py. The arms of a study run side by side: at each validation every arm that was
not stopped reports, in an order that is shuffled anew each time (a scheduler that sees arms in one order is kinder to
the first). The schedulers are the real ones; a trial is a stand-in with an id, because no training runs.
"""

import itertools
import json
import random
import sys

from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule
from ray.tune.schedulers.trial_scheduler import TrialScheduler

GRACE = 0.1


class Trial:
    """What the schedulers ask of a trial."""

    def __init__(self, number):
        self.trial_id = str(number)


class Controller:
    """What the schedulers ask of the loop that runs trials: nobody waits for a place."""

    def get_live_trials(self):
        """No trial is pending or paused."""
        return []


def rules(steps_total, direction):
    """The schedulers under each name, with a tenth of the budget as their grace."""
    told = {"time_attr": "step", "metric": "metric", "mode": direction}
    grace = max(1, int(GRACE * steps_total))
    yield "Ray MedianStoppingRule, grace 10 %", MedianStoppingRule(grace_period=grace, min_samples_required=3, **told)
    for factor in (2, 3):
        asha = AsyncHyperBandScheduler(
            max_t=steps_total, grace_period=grace, reduction_factor=factor, stop_last_trials=False, **told
        )
        yield f"Ray ASHA, reduction factor {factor}, grace 10 %", asha


def replay(scheduler, arms, order):
    """The step at which each arm is stopped, or None."""
    controller, trials = Controller(), [Trial(number) for number in range(len(arms))]
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    stopped = [None] * len(arms)
    for moment, step in enumerate(arms[0]["val_steps"]):
        if step == 0:
            continue  # Tune counts from the first report after training.
        live = [number for number in range(len(arms)) if stopped[number] is None]
        order.shuffle(live)
        for number in live:
            value = arms[number]["val_metric"][moment]
            result = {"step": step, "metric": float("nan") if value is None else value}
            if scheduler.on_trial_result(controller, trials[number], result) == TrialScheduler.STOP:
                stopped[number] = step
    return stopped


def main():
    """Replay study by study; the arms of one study follow each other in the input."""
    rows = (json.loads(line) for line in sys.stdin)
    for study, group in itertools.groupby(rows, key=lambda row: row["study"]):
        arms = list(group)
        for name, scheduler in rules(arms[0]["steps_total"], arms[0]["direction"]):
            for arm, step in zip(arms, replay(scheduler, arms, random.Random(f"{study}")), strict=True):
                print(json.dumps({"rule": name, "study": study, "arm": arm["arm"], "step": step}))


if __name__ == "__main__":
    main()
