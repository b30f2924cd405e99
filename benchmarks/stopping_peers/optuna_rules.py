"""Optuna's MedianPruner and PatientPruner on recorded curves: run by the interpreter of its own environment.

stdin and stdout as in lightning_rules.py. A real study in memory for each arm: its siblings are complete trials, then
the arm reports value by value until the pruner ends it. So every arm meets the most that a pruner can know.
"""

import itertools
import json
import sys
import warnings

import optuna
from optuna.pruners import MedianPruner, PatientPruner

WARM_UP = 0.1


def rules(steps_total):
    """The pruners under each name, with a tenth of the budget as their warm-up."""
    median = MedianPruner(n_startup_trials=3, n_warmup_steps=int(WARM_UP * steps_total))
    yield "Optuna MedianPruner, warm-up 10 %", median
    yield "Optuna PatientPruner(MedianPruner, 3)", PatientPruner(median, patience=3)
    yield "Optuna PatientPruner(None, 3)", PatientPruner(None, patience=3)


def values_of(arm):
    """step -> value as it is reported; Optuna takes nan."""
    return {
        step: float("nan") if value is None else value
        for step, value in zip(arm["val_steps"], arm["val_metric"], strict=True)
    }


def complete(arm):
    """A trial that ended with this arm's last value, or failed where that is not finite."""
    values = values_of(arm)
    last = list(values.values())[-1]
    if last != last:
        return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, intermediate_values=values)
    return optuna.trial.create_trial(value=last, intermediate_values=values)


def main():
    """Replay every arm beside its complete siblings."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.simplefilter("ignore", RuntimeWarning)  # a median of nothing but nan is nan, as it should be
    rows = (json.loads(line) for line in sys.stdin)
    for study, group in itertools.groupby(rows, key=lambda row: row["study"]):
        arms = list(group)
        trials = [complete(arm) for arm in arms]
        direction = {"min": "minimize", "max": "maximize"}[arms[0]["direction"]]
        for number, arm in enumerate(arms):
            for name, pruner in rules(arm["steps_total"]):
                lab = optuna.create_study(direction=direction, pruner=pruner)
                lab.add_trials([trial for other, trial in enumerate(trials) if other != number])
                trial, stopped = lab.ask(), None
                for step, value in values_of(arm).items():
                    trial.report(value, step)
                    if trial.should_prune():
                        stopped = step
                        break
                print(json.dumps({"rule": name, "study": study, "arm": arm["arm"], "step": stopped}))


if __name__ == "__main__":
    main()
