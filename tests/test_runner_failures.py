"""What an ended process means: recorded error streams, real processes, and what must never change a class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.failure.classes import CLASSES, FIRST_STEPS, Exit, Failure, classify, describe_exit, last_line
from runner.failure.last_words import decide
from runner.failure.memory import Memory, gib, read_memory
from runner.failure.rules import RULES

DATA = Path(__file__).parent / "data" / "stderr"
ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in DATA.glob("*.txt"))
CODES = {
    "config__argparse": 2,
    "config__argparse_unknown": 2,
    "config__no_script": 2,
    "config__trainer": 78,
    "config__trainer_device": 78,
    "config__trainer_usage": 2,
    "data__trainer_folder": 65,
    "data__trainer_images": 65,
    "disk_full__trainer": 70,
    "exit__command_not_found": 127,
    "host_oom__trainer": 70,
    "host_oom__trainer_onednn": 70,
    "killed__shell": 137,
}
SIGNALS = {"crashed__segfault": 11, "host_oom__bad_alloc": 6, "killed__keyboard": 2}
COMES_AGAIN = {"cuda__assert_behind_cublas", "cuda__device_assert", "cuda__no_kernel_image", "cuda__not_compiled"}
COMES_AGAIN |= {"nccl__invalid_usage"}
MAY_PASS = {"crashed__segfault", "crashed__dataloader_worker", "data__storage"}
HARMLESS = (
    "",
    "\r 40%|████      | 400/1000 [01:02<01:33,  6.41it/s]",
    "step 400/1000 loss=0.412 memory=17.2GiB",
    "2026-11-21 05:14:19,889 INFO closing the data loader",
    "WARNING: 3 of 4096 images were skipped",
    "/opt/python/multiprocessing/resource_tracker.py:254: UserWarning: There appear to be 6 leaked semaphore objects",
    "  warnings.warn('resource_tracker: There appear to be %d '",
    "wandb: Run history: loss ▇▅▃▂▁",
    "Beendet. 已完成。 Terminé à l'étape 400.",
    "\x1b[32m✔ synced 4 files\x1b[0m",
    "[rank0]:[W1121 06:24:44.903 ProcessGroupNCCL.cpp:1479] Warning: destroy_process_group() was not called",
)


def text_of(name: str) -> str:
    return (DATA / f"{name}.txt").read_bytes().decode("utf-8", errors="replace")


def exit_of(name: str) -> Exit:
    if name in SIGNALS:
        return Exit(None, SIGNALS[name], "killed")
    return Exit(CODES.get(name, 1), None, "exited")


def classified(name: str, extra: str = "", **known: Any) -> Failure:
    known = {"steps_done": 100, **known}
    return classify(exit_of(name), is_trainer="trainer" in name, tail=text_of(name) + extra, **known)


HANDLING = "\nDuring handling of the above exception, another exception occurred:\n\n"


def raised(words: str) -> str:
    return f'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n{words}\n'


def exited(code: int, tail: str = "", **known: Any) -> Failure:
    return classify(Exit(code, None, "exited"), **{"is_trainer": False, "tail": tail, "steps_done": 100, **known})


def killed(number: int, tail: str = "", **known: Any) -> Failure:
    return classify(Exit(None, number, "killed"), **{"is_trainer": False, "tail": tail, "steps_done": 100, **known})


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_stream_has_its_class_and_may_pass_only_as_the_table_says(name: str) -> None:
    wanted = name.split("__")[0]
    found = classified(name)
    assert found.name == (f"exit {CODES.get(name, 1)}" if wanted == "exit" else wanted)
    usually = CLASSES["unknown" if wanted == "exit" else wanted][0]
    assert found.is_transient == ((usually or name in MAY_PASS) and name not in COMES_AGAIN)
    assert found.says


@pytest.mark.parametrize("name", [name for name in NAMES if "oom__" in name and name != "cuda_oom__neighbour"])
def test_too_little_memory_in_the_first_steps_does_not_fit_and_is_never_retried(name: str) -> None:
    assert FIRST_STEPS == 3
    for steps in range(FIRST_STEPS):
        found = classified(name, steps_done=steps)
        assert (found.name, found.is_transient) == ("does_not_fit", False)
    assert classified(name, steps_done=FIRST_STEPS).name == name.split("__")[0]
    again = classified(name, steps_done=0, steps_before=2000)
    assert (again.name, again.is_transient) == (name.split("__")[0], True)


def test_what_does_not_fit_tells_what_was_there_what_was_asked_and_what_to_lower() -> None:
    tail = text_of("cuda_oom__torch_2_1")
    says = classify(Exit(70, None, "exited"), is_trainer=True, tail=tail, steps_done=0).says
    for part in ("the GPU has 23.6 GiB", "held 20.8 GiB", "1.7 GiB was free", "asked for 3.0 GiB more"):
        assert part in says
    for key in ("trainer.batch", "trainer.data.size", "trainer.model.width", "trainer.model.depth", "min_vram_gib"):
        assert key in says
    foreign = exited(1, tail, steps_done=0).says
    assert "trainer." not in foreign
    assert "batch" in foreign
    host = classified("host_oom__trainer", steps_done=0, host_memory_mib=15 * 1024.0, max_rss_mib=900.0).says
    for part in ("the host has 15.0 GiB", "held 900.0 MiB", "asked for 16.0 GiB more"):
        assert part in host
    silent = classified("cuda_oom__driver", steps_done=0, gpu_memory_mib=24 * 1024.0).says
    assert "the GPU has 24.0 GiB" in silent


def test_a_piece_larger_than_all_memory_never_fits_however_late_it_is_asked_for() -> None:
    late = classified("host_oom__numpy_array", steps_done=5000, host_memory_mib=256 * 1024.0)
    assert (late.name, late.is_transient) == ("does_not_fit", False)
    assert "2.3 TiB" in late.says


def test_memory_that_a_neighbour_holds_is_not_held_against_the_arm() -> None:
    found = classified("cuda_oom__neighbour", steps_done=0)
    assert (found.name, found.is_transient) == ("cuda_oom", True)
    assert "others held 19.3 GiB" in found.says


def test_every_rule_stands_on_a_recorded_or_reported_text() -> None:
    decided = [decide(text_of(name)) for name in NAMES if not name.startswith("exit")]
    used = {id(verdict.rule) for verdict in decided if verdict is not None}
    unused = [rule.pattern.pattern for rule in RULES if id(rule) not in used]
    assert not unused


@pytest.mark.parametrize("name", NAMES)
def test_harmless_lines_around_an_error_change_nothing(name: str) -> None:
    for steps in (0, 100):
        wanted = classified(name, steps_done=steps)
        for noise in ("".join(f"{line}\n" for line in HARMLESS), *(f"{line}\n" for line in HARMLESS)):
            for tail in (text_of(name) + noise, noise + text_of(name)):
                found = classify(exit_of(name), is_trainer="trainer" in name, tail=tail, steps_done=steps)
                assert (found.name, found.is_transient) == (wanted.name, wanted.is_transient), noise


CHATTER = st.lists(st.text("abcdefgh ijklmnop äöß訓練 0123456789.,;%|-_\t", max_size=80), max_size=8).map("\n".join)


@given(st.sampled_from(NAMES), CHATTER)
def test_any_chatter_after_an_error_changes_nothing(name: str, chatter: str) -> None:
    assert classified(name, f"\n{chatter}\n").name == classified(name).name


@given(
    st.sampled_from([name for name in NAMES if "oom" in name or name.startswith(("cuda_", "disk", "import", "data"))])
)
def test_redraws_of_a_progress_bar_in_front_of_an_error_hide_nothing(name: str) -> None:
    bar = "Epoch 3:  40%|████      | 400/1000 [01:02<01:33,  6.41it/s]"
    redrawn = "".join(f"{bar}{line}\n" if "Traceback" in line else f"{line}\n" for line in text_of(name).split("\n"))
    found = classify(exit_of(name), is_trainer="trainer" in name, tail=redrawn, steps_done=100)
    assert found.name == classified(name).name


_ENDS = st.builds(
    Exit,
    st.none() | st.integers(0, 255),
    st.none() | st.integers(1, 200),
    st.sampled_from(["exited", "stopped", "deadline", "killed", "spawn_failed", ""]),
    st.text(max_size=30),
)
_PIECES = st.text(max_size=60) | st.sampled_from([line for name in NAMES for line in text_of(name).split("\n")])


@given(_ENDS, st.lists(_PIECES, max_size=30).map("\n".join), st.booleans(), st.integers(-5, 10))
def test_no_text_makes_it_raise_and_every_answer_is_in_the_table(
    ended: Exit, tail: str, ours: bool, steps: int
) -> None:
    found = classify(ended, is_trainer=ours, tail=tail, steps_done=steps)
    assert found.name in CLASSES or found.name == f"exit {ended.code}"
    assert isinstance(found.says, str)
    assert describe_exit(ended)
    if found.name in ("does_not_fit", "config", "import", "disk_full", "internal", "deadline", "unknown"):
        assert not found.is_transient


@given(st.binary(max_size=2000), st.integers(0, 255))
def test_bytes_of_any_kind_are_classified(data: bytes, code: int) -> None:
    assert exited(code, data.decode("utf-8", errors="replace")).says is not None


WORDS = [
    "memory",
    "out",
    "of",
    "CUDA",
    "GPU",
    "host",
    "the",
    "low",
    "healthy",
    "peak",
    "killed",
    "disk",
    "data",
    "import",
]


@given(st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_healthy_words_about_memory_are_no_failure_of_memory(words: str) -> None:
    tail = f"memory: 17.2 GiB of 23.6 GiB in use\n{words}\nsaved; memory is fine\n"
    assert exited(1, tail).name == "exit 1"
    assert exited(1, tail + raised(f"ValueError: {words}")).name == "exit 1"


def test_the_last_cause_wins_and_what_was_caught_before_does_not() -> None:
    oom, disk, missing = text_of("cuda_oom__torch_2_1"), text_of("disk_full__write"), text_of("import__no_module")
    assert exited(1, oom + disk).name == "disk_full"
    assert exited(1, disk + oom).name == "cuda_oom"
    assert exited(1, missing + raised("KeyError: 3")).name == "exit 1"
    assert exited(1, oom + HANDLING + raised("KeyError: 3")).name == "cuda_oom"
    assert exited(1, oom + HANDLING + disk).name == "disk_full"


@pytest.mark.parametrize("head", ["Exception ignored in: <function Pool.__del__>", "Exception in thread Thread-3:"])
def test_what_the_program_itself_passed_over_decides_nothing(head: str) -> None:
    aside = f"{head}\n" + raised("OSError: [Errno 28] No space left on device")
    assert exited(1, text_of("cuda_oom__torch_1_8") + aside).name == "cuda_oom"
    assert exited(1, raised("KeyError: 3") + aside).name == "exit 1"
    assert exited(1, aside + raised("KeyError: 3")).name == "exit 1"
    assert exited(1, aside).name == "disk_full"
    chained = f"{head}\n" + raised("KeyError: 3") + HANDLING + raised("OSError: [Errno 28] No space left on device")
    assert exited(1, text_of("cuda_oom__torch_1_8") + chained).name == "cuda_oom"


def test_a_log_that_could_not_be_written_decides_nothing() -> None:
    logging = text_of("exit__logging_full").partition('Traceback (most recent call last):\n  File "/arms/odd')[0]
    assert "No space left" in logging
    assert exited(1, raised("KeyError: 3") + logging).name == "exit 1"
    assert exited(1, text_of("cuda_oom__torch_1_8") + logging).name == "cuda_oom"


@pytest.mark.parametrize(
    "name", ["import__no_module", "data__truncated_image", "host_oom__memory_error", "killed__keyboard"]
)
def test_a_traceback_whose_head_is_cut_off_is_read_all_the_same(name: str) -> None:
    head, _, rest = text_of(name).partition("\n")
    assert head.startswith("Traceback")
    assert exited(1, rest).name == name.split("__")[0]


def test_a_rank_s_own_exception_outweighs_the_complaints_of_its_peers() -> None:
    """Before torch 2.2 nothing marked the lines of a rank."""
    plain = text_of("exit__elastic_rank_key").replace("[rank0]: ", "").replace("[rank1]: ", "")
    assert (exited(1, plain).name, exited(1, plain).says) == ("exit 1", "KeyError: 'optimizer.beta3'")
    alone = raised("KeyError: 3") + text_of("nccl__remote_error")
    assert (exited(1, alone).name, exited(1, alone).is_transient) == ("nccl", True)
    child = "Process SpawnProcess-1:\n" + raised("KeyError: 3") + text_of("nccl__remote_error")
    assert exited(1, child).name == "exit 1"
    ranked = "".join(f"[rank1]: {line}\n" for line in raised("KeyError: 3").splitlines())
    assert exited(1, text_of("import__no_module") + ranked).name == "exit 1"


def test_an_exception_raised_from_another_has_the_class_of_the_one_that_is_known() -> None:
    link = "\nThe above exception was the direct cause of the following exception:\n\n"
    last = raised("mytrainer.Failed: training ended at step 4")
    assert exited(1, text_of("cuda_oom__torch_1_13") + link + last).name == "cuda_oom"


@pytest.mark.parametrize("number", [1, 2, 9, 10, 15, 64])
def test_a_signal_from_outside_may_pass_and_a_shell_s_code_says_the_same(number: int) -> None:
    assert (killed(number).name, killed(number).is_transient) == ("killed", True)
    if number in (1, 2, 9, 15):
        assert exited(128 + number) == killed(number)
    assert killed(number, text_of("cuda_oom__torch_1_8")).name == "killed"


def test_sigkill_is_the_kernel_s_only_where_something_says_so() -> None:
    assert killed(9, max_rss_mib=1000.0, host_memory_mib=16000.0).name == "killed"
    likely = killed(9, max_rss_mib=15500.0, host_memory_mib=16000.0, steps_done=0)
    assert (likely.name, likely.is_transient) == ("host_oom", True)
    assert "not proven" in likely.says
    assert killed(9, text_of("host_oom__slurm")).name == "host_oom"
    assert killed(9, text_of("host_oom__slurm"), steps_done=0).name == "does_not_fit"
    assert killed(15, max_rss_mib=15500.0, host_memory_mib=16000.0).name == "killed"


def test_a_crash_may_pass_only_after_the_same_code_had_worked() -> None:
    assert killed(11, steps_done=100).is_transient
    assert not killed(11, steps_done=0).is_transient
    assert not classified("crashed__segfault", steps_done=0).is_transient
    assert not classified("crashed__dataloader_worker", steps_done=0).is_transient
    assert killed(6, text_of("nccl__watchdog")).name == "nccl"
    assert killed(6, text_of("cuda__device_assert")).name == "cuda"


@pytest.mark.parametrize(
    ("ended", "ours", "name", "transient"),
    [
        (Exit(75, None, "exited"), True, "killed", True),
        (Exit(75, None, "exited"), False, "exit 75", False),
        (Exit(1, None, "stopped"), False, "killed", True),
        (Exit(None, None, "killed", "its supervisor was lost"), True, "killed", True),
        (Exit(70, None, "exited"), True, "internal", False),
        (Exit(65, None, "exited"), True, "data", False),
        (Exit(65, None, "exited"), False, "exit 65", False),
        (Exit(137, None, "exited"), True, "exit 137", False),
        (Exit(None, None, "exited"), False, "unknown", False),
        (Exit(None, 15, "deadline"), False, "deadline", False),
        (Exit(None, None, "spawn_failed", "cannot start 'x': [Errno 2] No such file"), False, "spawn_failed", False),
        (Exit(None, None, "spawn_failed", "cannot start 'x': [Errno 11] Resource"), False, "spawn_failed", True),
    ],
)
def test_an_exit_record_without_words_stands_for_itself(ended: Exit, ours: bool, name: str, transient: bool) -> None:
    found = classify(ended, is_trainer=ours, tail="", steps_done=100)
    assert (found.name, found.is_transient) == (name, transient)


def test_the_trainer_s_own_word_on_its_configuration_beats_what_stands_around_it() -> None:
    assert exited(78, text_of("cuda_oom__torch_2_5"), is_trainer=True).name == "config"
    assert exited(70, text_of("cuda_oom__torch_2_5"), is_trainer=True).name == "cuda_oom"
    assert exited(65, text_of("data__storage"), is_trainer=True).is_transient


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([sys.executable, "-c", "bytearray(10**15)"], "does_not_fit"),
        ([sys.executable, "-c", "open('/dev/full', 'w', buffering=0x10000).write('x' * 10**6)"], "disk_full"),
        ([sys.executable, "-c", "import nothing_of_this_name"], "import"),
        ([sys.executable, "nothing_of_this_name.py"], "config"),
        ([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "killed"),
        ([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], "crashed"),
        (["sh", "-c", f"{sys.executable} -c 'import os; os.kill(os.getpid(), 9)'; exit $?"], "killed"),
        ([sys.executable, "-c", "raise ValueError('the data is gone')"], "exit 1"),
    ],
)
def test_processes_of_today_are_read_like_the_recorded_ones(argv: list[str], name: str) -> None:
    done = subprocess.run(argv, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60)
    signal = -done.returncode if done.returncode < 0 else None
    ended = Exit(None if signal else done.returncode, signal, "killed" if signal else "exited")
    found = classify(ended, is_trainer=False, tail=done.stderr.decode(), steps_done=0)
    assert found.name == name


def test_our_trainer_s_refusal_of_a_command_is_a_configuration_failure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "trian"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    found = exited(done.returncode, done.stderr, is_trainer=True, steps_done=0)
    assert (found.name, "trian" in found.says) == ("config", True)


def test_amounts_of_all_versions_are_read() -> None:
    def amounts(name: str) -> Memory:
        return read_memory(text_of(name), Memory(here=7.0, own=5.0))

    assert amounts("cuda_oom__torch_1_0") == Memory(11.17 * 1024, 1.0, 576 / 1024, 10.90 * 1024, None)
    assert amounts("cuda_oom__torch_1_8") == Memory(14.76 * 1024, 2.87 * 1024, 19.75, 13.71 * 1024, None)
    assert amounts("cuda_oom__torch_2_5") == Memory(23.65 * 1024, 22.0, 11.06, 23.60 * 1024, None)
    assert amounts("cuda_oom__neighbour") == Memory(23.65 * 1024, 512.0, 201.06, 4.13 * 1024, 19.31 * 1024)
    assert amounts("cuda_oom__malloc_async") == Memory(14.75 * 1024, 20.0, 12.81, 13.57 * 1024, None)
    assert amounts("host_oom__torch_allocator") == Memory(7.0, 1024.0, None, 5.0, None)
    assert amounts("host_oom__memory_error") == Memory(7.0, None, None, 5.0, None)
    assert [gib(amount) for amount in (0.5, 20.0, 2048.0, 3 * 1024.0**2)] == [
        "0.5 MiB",
        "20.0 MiB",
        "2.0 GiB",
        "3.0 TiB",
    ]


def test_the_last_line_skips_what_says_nothing_and_fits_a_table() -> None:
    assert last_line("one\ntwo\r\r\n  \n") == "two"
    assert last_line("10%\r20%\r30%\n") == "30%"
    assert last_line("\x1b[31mred\x1b[0m\n") == "red"
    assert len(last_line("x" * 5000)) == 300
    assert last_line("") == ""


def test_the_page_about_failures_says_what_the_table_says() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "unattended.md").read_text()
    rows = [f"| `{name}` | {'yes' if again else 'no'} | {why} |" for name, (again, why) in CLASSES.items()]
    assert [line for line in page.splitlines() if line in rows] == rows
