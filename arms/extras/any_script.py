"""Fits a line to noisy points by gradient descent and prints its loss. Plain Python: no packages, no runner."""

import argparse
import random


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()

    draw = random.Random(options.seed)
    xs = [draw.uniform(-2.0, 2.0) for _ in range(60_000)]
    ys = [3.0 * x - 1.0 + draw.gauss(0.0, 0.1) for x in xs]
    slope = offset = 0.0
    for step in range(1, options.steps + 1):
        errors = [slope * x + offset - y for x, y in zip(xs, ys, strict=True)]
        loss = sum(error * error for error in errors) / len(errors)
        slope -= options.lr * 2.0 * sum(error * x for error, x in zip(errors, xs, strict=True)) / len(xs)
        offset -= options.lr * 2.0 * sum(errors) / len(xs)
        print(f"step {step}/{options.steps} loss={loss:.6g}")
    print(f"fitted y = {slope:.4g} x + {offset:.4g}")


if __name__ == "__main__":
    main()
