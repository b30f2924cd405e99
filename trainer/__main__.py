"""The trainer's commands. Torch is imported only by a command that needs it."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import traceback
from pathlib import Path

from trainer.errors import EXIT_DONE, EXIT_INTERNAL, EXIT_USAGE, TrainerError

_INTERRUPTED = 128 + signal.SIGINT
_USAGE = """usage: python -m trainer COMMAND …

  train CONFIG --run-dir DIR [--attempt N] [--stop-after N] [--resume [--from-step N] | --from-run DIR --from-step N]
        [--processes N]                                                  train one run
  check CONFIG | check --json                                            is a configuration usable, how large is it
  evaluate RUN_DIR …                                                     full validation of a checkpoint, or prompts
  autopsy RUN_DIR …                                                      what went wrong since the best checkpoint
  sample RUN_DIR …                                                       draw an image from a checkpoint
  prepare PHOTOS --out DATA …                                            a folder of photographs as training shards
  status DATA [--json]                                                   how far prepared photographs are
  verify DATA [--fix] [--json]                                           is every byte of them what it should be
  publish DATA --to hub:OWNER/NAME [--yes] …                              a packed set of shards and its card to the hub
  tune CONFIG [--out F] …                                                the fastest way to make the same step
  fit-basis CONFIG --out F                                               the subspace of AsymFlow, from training images
  fit-pose CONFIG --out F                                                fit the detector that scores poses

COMMAND --help tells more. Exit codes: 0 done, 75 stopped with a complete checkpoint, 78 configuration, 65 data,
70 internal, 2 command line."""


def main(argv: list[str]) -> int:
    """Run one command and turn its errors into exit codes."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return EXIT_DONE if argv else EXIT_USAGE
    name, arguments = argv[0], argv[1:]
    if name not in _COMMANDS:
        print(f"trainer: {name!r} is not in this version; commands: {', '.join(_COMMANDS)}", file=sys.stderr)
        return EXIT_USAGE
    try:
        return _COMMANDS[name](arguments)
    except TrainerError as error:
        print(f"trainer {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"trainer {name}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception:
        traceback.print_exc()
        return EXIT_INTERNAL


def _train(argv: list[str]) -> int:
    _tell_stacks_on_sigusr1()
    parser = argparse.ArgumentParser(prog="python -m trainer train", description="Train one run.")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a resolved configuration: trainer, seed, run")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run; everything is written there")
    parser.add_argument("--attempt", type=int, help="number of this process (default: one more than the last)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest complete checkpoint")
    parser.add_argument("--from-run", type=Path, metavar="DIR", help="begin with a checkpoint of this run folder")
    parser.add_argument("--from-step", type=int, metavar="N", help="the checkpoint of step N (--resume, --from-run)")
    parser.add_argument("--stop-after", type=int, metavar="N", help="stop after step N with a checkpoint, exit code 75")
    parser.add_argument("--processes", type=int, metavar="N", help="train with N processes, a GPU each (default: 1)")
    arguments = parser.parse_args(argv)
    from trainer.train import train

    return train(
        arguments.config,
        arguments.run_dir,
        arguments.attempt,
        arguments.resume,
        arguments.stop_after,
        from_step=arguments.from_step,
        from_run=arguments.from_run,
        processes=arguments.processes,
    )


def _check(argv: list[str]) -> int:
    from trainer.check import main as check

    return check(argv)


def _evaluate(argv: list[str]) -> int:
    _tell_stacks_on_sigusr1()
    from trainer.evaluate.command import main as evaluate

    return evaluate(argv)


def _autopsy(argv: list[str]) -> int:
    _tell_stacks_on_sigusr1()
    from trainer.autopsy.command import main as autopsy

    return autopsy(argv)


def _sample(argv: list[str]) -> int:
    from trainer.sample import main as sample

    return sample(argv)


def _prepare(argv: list[str]) -> int:
    from trainer.prepare.command import main as prepare

    return prepare(argv)


def _tune(argv: list[str]) -> int:
    from trainer.tuning.command import main as tune

    return tune(argv)


def _fit_basis(argv: list[str]) -> int:
    from trainer.fit_basis import main as fit_basis

    return fit_basis(argv)


def _fit_pose(argv: list[str]) -> int:
    from trainer.pose.command import main as fit_pose

    return fit_pose(argv)


def _status(argv: list[str]) -> int:
    from trainer.prepare.status import main as status

    return status(argv)


def _verify(argv: list[str]) -> int:
    from trainer.prepare.verify import main as verify

    return verify(argv)


def _publish(argv: list[str]) -> int:
    from trainer.prepare.publish import main as publish

    return publish(argv)


_COMMANDS = {
    "train": _train,
    "check": _check,
    "evaluate": _evaluate,
    "autopsy": _autopsy,
    "sample": _sample,
    "prepare": _prepare,
    "tune": _tune,
    "fit-basis": _fit_basis,
    "fit-pose": _fit_pose,
    "status": _status,
    "verify": _verify,
    "publish": _publish,
}


def _tell_stacks_on_sigusr1() -> None:
    """SIGUSR1 makes every thread say on stderr where it is, even one that is stuck in a computation; work goes on."""
    standard_error = 2  # the descriptor, not sys.stderr, which may be something without one
    faulthandler.register(signal.SIGUSR1, file=standard_error, all_threads=True, chain=False)


def _turn_deaf() -> None:
    """A stop that arrives while the interpreter shuts down must not turn the exit code into a death by signal.

    At shutdown Python puts the default action back for every handler, but not for an ignored signal.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    _turn_deaf()
    sys.exit(exit_code)
