"""The commands that launch the arms of a study again, as far as their launches and their provenance tell. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from reports.study import RunView, StudyView
from reports.wording import LONGEST, counted, listed

MOST_FILES = 12
MOST_COMMANDS = 4
HOSTS_FILE = "HOSTS.yaml"
MAX_USD = "budget.study.max_usd"

_PLAIN_VALUE = re.compile(r"[A-Za-z/_][A-Za-z0-9_./-]*")
_NO_TEXT = frozenset({"true", "false", "null"})  # what YAML reads as something else

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Relaunch:
    """Lines of commands for a code block, in which nothing can be escaped, and what to know about them."""

    command: str
    note: str


def relaunch(study: StudyView) -> Relaunch:
    """A command for each set of options that runs were launched with, its arm files by name; where they are many or
    not plain, how many there are and where they stand."""
    runs = [run for run in study.runs if run.parent is None]  # a rescue launches its runs by itself
    files = list(dict.fromkeys(name for run in runs if (name := _arm_file(run))))
    note = _note(runs)
    if not files:
        return Relaunch("runner launch ARM.yaml ...", f"No run says which arm file it came from. {note}".strip())
    commands = list(_commands(study, runs))
    if len(files) > MOST_FILES or not all(_is_plain(name) for name in files):
        told = counted(len(files), "arm file")
        kept = commands[0][1] if len(commands) == 1 else ()
        shown = _lines(("ARM.yaml ...",), kept if all(_is_plain(word) for word in kept) else (), is_quoted=False)
        return Relaunch(shown, f"The {told} stand in data/provenance.csv under arm_files. {note}".strip())
    if len(commands) > MOST_COMMANDS or not all(_is_plain(word) for _, words in commands for word in words):
        told = f"{counted(len(commands), 'set')} of options, too many or too odd to be shown here"
        return Relaunch(_lines(files, ()), f"The paths are those of the launch; it was given {told}. {note}".strip())
    shown = "\n".join(_lines(names, words) for names, words in commands)
    return Relaunch(shown, f"The paths are those of the launch. {note}".strip())


def _commands(study: StudyView, runs: list[RunView]) -> Iterator[tuple[Words, Words]]:
    """(arm files, options) of each command: files that were launched with the same options and seeds go together."""
    seeds: dict[tuple[str, Words], list[int]] = {}
    for run in runs:
        if name := _arm_file(run):
            seeds.setdefault((name, _options(run)), []).append(run.seed)
    declare = {_arm_file(run) for run in runs if run.launch.declares_seeds}
    allowed = dict.fromkeys((one.rule, one.allowed) for one in study.lint if one.allowed)
    remarks = tuple(word for rule, reason in allowed for word in ("--allow", f"{rule}={reason}"))
    groups: dict[tuple[Words, Words], list[str]] = {}
    for (name, options), found in seeds.items():
        wanted = tuple(sorted(set(found)))
        told: Words = () if wanted == (0,) and name not in declare else ("--seeds", _ranges(wanted))
        groups.setdefault((options, told), []).append(name)
    for (options, span), names in groups.items():
        yield tuple(dict.fromkeys(names)), (*options, *span, *remarks)


def _options(run: RunView) -> Words:
    launch, words = run.launch, []
    if launch.provider != "local":
        words += ["--provider", launch.provider]
    if launch.provider == "ssh":
        words += ["--hosts", HOSTS_FILE]
    words += launch.options
    for key, value in run.sets:
        words += ["--max-usd", _value(value)] if key == MAX_USD else ["--set", f"{key}={_value(value)}"]
    return tuple(words)


def _note(runs: list[RunView]) -> str:
    """What the commands leave out, as far as that is known."""
    notes = []
    hosts = list(dict.fromkeys(name for run in runs for name in run.launch.hosts))
    if any(run.launch.provider == "ssh" for run in runs):
        named = f" (it had {listed(hosts)})" if hosts else ""
        notes.append(f"{HOSTS_FILE} stands for the list of your machines{named}.")
    unknown = [run for run in runs if not run.launch.is_known]
    if unknown:
        whose = "the launch" if len(unknown) == len(runs) else f"the launch of {counted(len(unknown), 'run')}"
        notes.append(f"What {whose} was given beside files, place and --set is not kept.")
    if any(run.launch.provider not in ("local", "ssh") for run in runs):
        notes.append(
            "Machines are rented anew, perhaps others; a yes (--yes), names allowed with --allow-upload and which "
            "offer was taken are no part of the command."
        )
    return " ".join(notes)


def _lines(files: Iterable[str], words: Words, *, is_quoted: bool = True) -> str:
    """One command; files and options on lines of their own where there are several."""
    names = [shlex.quote(name) for name in files] if is_quoted else list(files)
    options = [" ".join(map(shlex.quote, option)) for option in _paired(words)]
    if len(names) == 1 and not options:
        return f"runner launch {names[0]}"
    return " \\\n    ".join(["runner launch", *names, *options])


def _paired(words: Words) -> Iterator[Words]:
    """Each option with what follows it."""
    groups = groupby(enumerate(words), key=lambda one: sum(word.startswith("--") for word in words[: one[0] + 1]))
    return (tuple(word for _, word in group) for _, group in groups)


def _value(value: Any) -> str:
    """A value as --set reads it back: YAML, of which JSON is a part."""
    if isinstance(value, str) and _PLAIN_VALUE.fullmatch(value) and value.lower() not in _NO_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)


def _ranges(seeds: tuple[int, ...]) -> str:
    """`0-5,8` for --seeds."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], seed]
        else:
            parts.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _arm_file(run: RunView) -> str:
    """The first file of a run's list is the arm itself, the others are its bases."""
    sources = run.provenance.get("arm_files")
    first = sources[0] if isinstance(sources, list | tuple) and sources else None
    return first if isinstance(first, str) else ""


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= LONGEST and name.isprintable()
