"""Lightning's EarlyStopping on recorded curves: run by the interpreter of its own environment, not imported by ours.

stdin: one arm a line (study, arm, steps_total, direction, val_steps, val_metric). stdout: one decision a line,
`{"rule", "study", "arm", "step"}`, step null when the arm was never stopped. The callback itself decides, through the
method that it calls after each validation.
"""

import json
import sys

import torch
from pytorch_lightning.callbacks import EarlyStopping

NEVER = 10**9


def rules(direction, first):
    """The callback under each name; `first` is the first value that the arm reports."""
    told = {"monitor": "metric", "mode": direction}
    yield "Lightning EarlyStopping, patience 3", EarlyStopping(patience=3, **told)
    yield (
        "Lightning EarlyStopping, patience 3, min_delta 0.5 % of the first value",
        EarlyStopping(patience=3, min_delta=0.005 * abs(first), **told),
    )
    if direction == "min" and 0.3 < first < 1.0:
        # An absolute number; 1.0 says something only about a metric of that order, like the published LPIPS.
        yield (
            "Lightning divergence_threshold 1.0 (metrics between 0.3 and 1)",
            EarlyStopping(patience=NEVER, divergence_threshold=1.0, **told),
        )
    yield (
        "Lightning divergence_threshold at the first value",
        EarlyStopping(patience=NEVER, divergence_threshold=first, **told),
    )


def main():
    """Replay every arm alone, validation by validation."""
    for line in sys.stdin:
        arm = json.loads(line)
        values = [float("nan") if value is None else value for value in arm["val_metric"]]
        first = next((value for value in values if value == value), 1.0)
        for name, callback in rules(arm["direction"], first):
            stopped = None
            for step, value in zip(arm["val_steps"], values, strict=True):
                should_stop, _reason = callback._evaluate_stopping_criteria(torch.tensor(value))
                if should_stop:
                    stopped = step
                    break
            print(json.dumps({"rule": name, "study": arm["study"], "arm": arm["arm"], "step": stopped}))


if __name__ == "__main__":
    main()
