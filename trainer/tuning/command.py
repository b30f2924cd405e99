"""`python -m trainer tune CONFIG`: the fastest way to make the training step of a configuration on this machine.

It measures real optimizer steps of the configuration, cut into other micro-batches, with and without computing
activations again, compiled and not. The effective batch and every draw stay as they are. It measures one
process on one device; runs of several processes share the micro-batches of a step among them. No torch here.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_args

from trainer import rules
from trainer.config import ActivationCheckpointingConfig, PrecisionConfig
from trainer.data.shapes import stream_shapes
from trainer.document import Document, load_document
from trainer.errors import EXIT_DONE, ConfigError, Issue, TrainerError, UsageError
from trainer.tuning.candidate import CHECKPOINTING, Candidate, Wanted, candidates, estimated_mib, own_candidate
from trainer.tuning.outcome import Outcome, checked
from trainer.tuning.plan import best_s, gets_another_turn, skip_reason, smallest_need, turns
from trainer.tuning.process import Place, measure
from trainer.tuning.report import Tuning, document, table
from trainer.tuning.request import Request
from trainer.tuning.rewrite import changes, lines, rewritten

EXIT_INTERRUPTED = 130
_CODES = "Exit code 78 if nothing fits the memory, 130 if interrupted: what was measured is printed, --out not written."
T = TypeVar("T")


def main(argv: list[str]) -> int:
    """Run the command. Exit code 130 if it was interrupted: what was measured is printed, --out is not written.

    Raises UsageError, ConfigError (also where nothing fits the memory) and DataError.
    """
    arguments = _parser().parse_args(argv)
    _refuse_bad_out(arguments.out)
    text, loaded = _read(arguments.config)
    options = Options(**{key: getattr(arguments, key) for key in _OPTIONS})
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        tuning = Tuner(loaded, _wanted(arguments), options, _tell).run(str(arguments.config))
    finally:
        signal.signal(signal.SIGTERM, before)
    return _report(arguments, text, tuning)


def _report(arguments: argparse.Namespace, text: str, tuning: Tuning) -> int:
    """Print what was found, and write the choice where that was asked for."""
    chosen = tuning.chosen
    written = None
    if chosen is not None and tuning.complete and arguments.out is not None:
        _write(arguments.out, rewritten(text, changes(chosen.candidate, tuning.own)))
        written = str(arguments.out)
    if arguments.json:
        print(json.dumps(document(tuning, written)))
    else:
        print(table(tuning))
        if written:
            print(f"written: {written}")
        elif chosen is not None:
            print("below `trainer:` in the configuration:\n" + lines(changes(chosen.candidate, tuning.own)), end="")
    if not tuning.complete:
        return EXIT_INTERRUPTED
    if chosen is None:
        raise _nothing(tuning)
    return EXIT_DONE


@dataclass(frozen=True, slots=True)
class Options:
    """How candidates are measured: see the command's --help."""

    seconds: float
    warm_up: int
    repeats: int
    timeout: float
    budget_mib: float | None
    synthetic: bool


_OPTIONS = ("seconds", "warm_up", "repeats", "timeout", "budget_mib", "synthetic")


@dataclass
class Tuner:
    """Measures the candidates of a configuration one after the other; `tell` hears a line about each.

    The first that was measured, the configuration's own if it fits, decides which steps all others make, and its losses
    are those that the others must have.
    """

    document: Document
    wanted: Wanted
    options: Options
    tell: Callable[[str], None]
    _outcomes: dict[Candidate, Outcome] = field(default_factory=dict)
    _first: Outcome | None = None
    _place: Place | None = None
    _limit_mib: float | None = None

    def run(self, name: str) -> Tuning:
        """Measure all candidates; what there is when somebody interrupts."""
        config, streams = self.document.config, stream_shapes(self.document.config)
        found = candidates(config, streams, self.wanted)
        estimates = {each: estimated_mib(each, config, streams) for each in found}
        self._limit_mib = self.options.budget_mib
        complete = True
        with tempfile.TemporaryDirectory(prefix="armature-tune-") as folder:
            try:
                self._measure_all(found, estimates, Path(folder))
            except KeyboardInterrupt:
                complete = False
        return Tuning(
            config=name,
            samples_per_step=config.samples_per_step,
            own=own_candidate(config),
            outcomes=list(self._outcomes.values()),
            estimates=estimates,
            place=self._place,
            limit_mib=self._limit_mib,
            synthetic=self.options.synthetic,
            complete=complete,
        )

    def _measure_all(self, found: list[Candidate], estimates: dict[Candidate, float], folder: Path) -> None:
        order = turns(found, self.options.repeats)
        spent_s, trials = 0.0, 0
        for number, (turn, candidate) in enumerate(order, start=1):
            if turn and not self._is_worth_another_turn(candidate):
                continue
            reason = None if turn else self._reason(candidate, estimates[candidate])
            if reason is not None:
                self._outcomes[candidate] = Outcome(candidate, "skipped", reason)
                self.tell(f"{number} of {len(order)}: {candidate}: skipped, {reason}")
                continue
            left = f"; about {_minutes(spent_s / trials * (len(order) - number + 1))} left" if trials else ""
            self.tell(f"{number} of {len(order)}: {candidate} …{left}")
            started = time.monotonic()
            self._take(candidate, folder, number)
            spent_s, trials = spent_s + time.monotonic() - started, trials + 1
            self.tell(f"    {_in_short(self._outcomes[candidate])}")

    def _is_worth_another_turn(self, candidate: Candidate) -> bool:
        own = own_candidate(self.document.config)
        return gets_another_turn(self._outcomes[candidate], self._outcomes.values(), self._limit_mib, own)

    def _reason(self, candidate: Candidate, estimate_mib: float) -> str | None:
        """Why a candidate is not tried; the configuration's own is refused by the rules before it comes here."""
        issues = rules.issues(candidate.applied(self.document.config))
        if issues:
            return str(issues[0])
        return skip_reason(candidate, estimate_mib, self._outcomes.values(), self._limit_mib)

    def _take(self, candidate: Candidate, folder: Path, number: int) -> None:
        """Measure one candidate once and remember it."""
        outcome, place = measure(candidate, self._request(candidate, folder, number), self.options.timeout)
        if place is not None and self._place is None:
            self._place, self._limit_mib = place, place.limit_mib
        earlier = self._outcomes.get(candidate)
        if earlier is not None:
            self._outcomes[candidate] = earlier.joined(outcome)
            return
        self._outcomes[candidate] = checked(outcome, self._first)
        if self._first is None and outcome.kind == "measured":
            self._first = outcome

    def _request(self, candidate: Candidate, folder: Path, number: int) -> Request:
        config = candidate.applied(self.document.config)
        (folder / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        return Request(
            config=config.model_dump_json(),
            seed=self.document.seed,
            run=self.document.run,
            run_dir=str(folder / "run"),
            answer=str(folder / f"trial-{number}.jsonl"),
            attempt=number,
            synthetic=self.options.synthetic,
            warm_up=self.options.warm_up,
            seconds=self.options.seconds,
            steps=None if self._first is None else len(self._first.step_s),
            best_s=best_s(self._outcomes.values(), self._limit_mib),
            limit_mib=self._limit_mib,
        )


# ---- command line ----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer tune", description=__doc__, epilog=_CODES)
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="a resolved configuration: trainer, seed, run")
    add("--out", type=Path, metavar="FILE", help="write CONFIG with the choice in it; every other key stays as it is")
    add("--json", action="store_true", help="print one JSON document instead of a table")
    add("--seconds", type=_positive, default=10.0, metavar="S", help="of timed steps for each candidate (default 10)")
    add(
        "--budget-mib", type=_positive, metavar="M", help="memory a candidate may take (default: 90 %% of what is free)"
    )
    add("--micro-batches", type=_list(int), default=(), metavar="N,…", help="default: every divisor of the batch")
    kinds = get_args(ActivationCheckpointingConfig.model_fields["kind"].annotation)
    add("--checkpointing", type=_list(_one_of(kinds)), default=CHECKPOINTING, metavar="KIND,…", help=", ".join(kinds))
    add("--compile", choices=("off", "on", "both"), default="both", help="compile the blocks (default: both)")
    computes = get_args(PrecisionConfig.model_fields["compute"].annotation)
    about = f"{', '.join(computes)} (default: that of CONFIG, because it changes the numbers)"
    add("--precision", type=_list(_one_of(computes)), default=(), metavar="FORMAT,…", help=about)
    add(
        "--repeats", type=_count, default=2, metavar="N", help="turns of every candidate; the faster counts (default 2)"
    )
    add("--warm-up", type=_count, default=3, metavar="N", help="steps that are not timed (default 3)")
    add("--timeout", type=_positive, default=900.0, metavar="S", help="seconds until a candidate is given up")
    add("--synthetic", action="store_true", help="noise of the shapes of the data, where that is not here yet")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _list(of: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """A reader of values with commas between."""

    def read(text: str) -> tuple[T, ...]:
        try:
            return tuple(of(part.strip()) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
        return text

    return read


def _wanted(arguments: argparse.Namespace) -> Wanted:
    compiled = {"off": (False,), "on": (True,), "both": (False, True)}[arguments.compile]
    return Wanted(arguments.micro_batches, arguments.checkpointing, compiled, arguments.precision)


# ---- files and words -------------------------------------------------------------------------------------------------


def _refuse_bad_out(out: Path | None) -> None:
    """Before an hour is spent."""
    if out is None:
        return
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: {out.absolute().parent} is no folder")


def _read(path: Path) -> tuple[str, Document]:
    """The text of a configuration, byte for byte, and what it says."""
    loaded = load_document(path)
    return path.read_bytes().decode("utf-8"), loaded


def _write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(text.encode("utf-8"))
    unfinished.replace(path)


def _nothing(tuning: Tuning) -> TrainerError:
    """Why there is no choice."""
    tried = [outcome for outcome in tuning.outcomes if outcome.kind != "skipped"]
    if tried and all(outcome.kind in ("failed", "impossible") for outcome in tried):
        first = tried[0]
        error = ConfigError if first.kind == "impossible" else TrainerError
        return error(f"no candidate could be measured; {first.candidate}: {first.why}")
    limit = "of the memory" if tuning.limit_mib is None else f"in {tuning.limit_mib:,.0f} MiB"
    need = smallest_need(tuning.outcomes, tuning.estimates)
    message = f"no candidate fits {limit}; the smallest need is {need}"
    allowed = "a smaller model or data.size, a larger --budget-mib, or a machine with more memory"
    return ConfigError([Issue("", message, allowed)])


def _tell(line: str) -> None:
    print(f"tune: {line}", file=sys.stderr, flush=True)


def _in_short(outcome: Outcome) -> str:
    if outcome.kind != "measured":
        return f"{outcome.kind.replace('_', ' ')}: {outcome.why}"
    steps = f"{len(outcome.step_s)} steps of {outcome.median_s:.4g} ± {outcome.spread_s:.2g} s"
    return f"{steps}, {outcome.peak_mib:,.0f} MiB"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
