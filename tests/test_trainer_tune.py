"""What `tune` tries, skips, chooses and writes, decided without a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.trainer_parts import tiny_config
from trainer.data.shapes import stream_shapes
from trainer.document import load_document, read_yaml
from trainer.errors import TrainerError, UsageError
from trainer.tuning.candidate import Candidate, Wanted, candidates, divisors, estimated_mib, own_candidate
from trainer.tuning.outcome import Outcome, checked, died
from trainer.tuning.plan import ESTIMATE_SLACK, SAME, choose, fits, gets_another_turn, skip_reason, smallest_need, turns
from trainer.tuning.report import Tuning, document, table
from trainer.tuning.rewrite import changes, lines, rewritten

ROOT = Path(__file__).parents[1]
EVERYTHING = Wanted(compiled=(False, True), computes=("fp32", "bf16"))
TECHNIQUES = {
    "optimizer": {"name": "muon", "lr": 0.01},
    "tread": {"enabled": True},
    "repa": {"enabled": True},
    "activation_checkpointing": {"kind": "budget", "budget": 0.3},
}

some_candidates = st.builds(
    lambda batch, kind, compiled: Candidate(batch, 64 // batch, kind, compiled, "fp32"),
    st.sampled_from(divisors(64)),
    st.sampled_from(("none", "every_k", "budget", "full")),
    st.booleans(),
)
some_measured = st.builds(
    lambda candidate, seconds, mib: Outcome(candidate, "measured", step_s=(seconds,), peak_mib=mib),
    some_candidates,
    st.floats(0.1, 10.0),
    st.floats(100.0, 1000.0),
)


def one(batch: int = 4, kind: str = "none", compiled: bool = False, compute: str = "fp32") -> Candidate:
    return Candidate(batch, 16 // batch, kind, compiled, compute)


def measured(candidate: Candidate, seconds: float, mib: float = 100.0, **more: Any) -> Outcome:
    return Outcome(candidate, "measured", step_s=(seconds,) * 3, peak_mib=mib, **more)


# ---- candidates ------------------------------------------------------------------------------------------------------


@given(batch=st.integers(1, 24), accumulation=st.integers(1, 12))
def test_every_candidate_makes_the_whole_effective_batch_and_none_comes_twice(batch: int, accumulation: int) -> None:
    config = tiny_config(batch=batch, accumulation=accumulation)
    found = candidates(config, stream_shapes(config), EVERYTHING)
    assert {each.batch * each.accumulation for each in found} == {batch * accumulation}
    assert len(set(found)) == len(found) == len(divisors(batch * accumulation)) * 3 * 2 * 2
    assert found[0] == own_candidate(config)
    sizes = [estimated_mib(each, config, stream_shapes(config)) for each in found[1:]]
    assert sizes == sorted(sizes)


def test_a_candidate_changes_nothing_but_what_it_is() -> None:
    config = tiny_config(batch=4, accumulation=4, **TECHNIQUES)
    chosen = Candidate(2, 8, "full", True, "bf16").applied(config)
    before, after = config.model_dump(mode="json"), chosen.model_dump(mode="json")
    assert {key for key in before if before[key] != after[key]} == {
        "batch",
        "accumulation",
        "activation_checkpointing",
        "compile",
        "precision",
    }
    assert after["activation_checkpointing"] == {**before["activation_checkpointing"], "kind": "full"}
    assert after["compile"] == {**before["compile"], "enabled": True}
    assert after["precision"] == {**before["precision"], "compute": "bf16"}
    assert chosen.routed_blocks == config.routed_blocks
    assert type(chosen).model_validate_json(chosen.model_dump_json()) == chosen  # as a trial reads it


def test_what_the_configuration_has_is_tried_even_where_nobody_asked_for_it() -> None:
    config = tiny_config(batch=4, accumulation=4, **TECHNIQUES)
    found = candidates(config, stream_shapes(config), Wanted((8,), ("none",), (False,)))
    assert found == [own_candidate(config), Candidate(8, 2, "none", False, "fp32")]
    assert found[0].checkpointing == "budget"


@pytest.mark.parametrize("size", [3, 0, 32])
def test_a_micro_batch_that_does_not_divide_the_step_is_refused_with_those_that_do(size: int) -> None:
    config = tiny_config(batch=4, accumulation=4)
    with pytest.raises(UsageError, match="16 images, and that is kept; allowed: 1, 2, 4, 8, 16"):
        candidates(config, stream_shapes(config), Wanted((4, size)))


@given(some_candidates, some_candidates)
def test_what_needs_no_more_is_not_estimated_at_more(first: Candidate, second: Candidate) -> None:
    config = tiny_config(batch=64, activation_checkpointing={"budget": 0.5})
    streams = stream_shapes(config)
    if first.needs_no_more_than(second) and {first.checkpointing, second.checkpointing} <= {"none", "every_k"}:
        assert estimated_mib(first, config, streams) <= estimated_mib(second, config, streams)
    if first != second:
        assert not (first.needs_no_more_than(second) and second.needs_no_more_than(first))


# ---- what is skipped -------------------------------------------------------------------------------------------------


def test_what_is_larger_than_what_ran_out_of_memory_is_skipped_and_says_so() -> None:
    gone = [Outcome(one(4, "every_k"), "out_of_memory", "CUDA out of memory")]
    for larger in (one(8, "every_k"), one(4, "none"), one(16, "none")):
        reason = skip_reason(larger, 10.0, gone, 100.0)
        assert reason is not None
        assert "4 x 4, checkpointing every_k" in reason
    for other in (one(2, "every_k"), one(8, "full"), one(2, "none"), one(8, "none", compiled=True)):
        assert skip_reason(other, 10.0, gone, 100.0) is None


def test_a_failure_for_another_reason_skips_nobody() -> None:
    assert skip_reason(one(8), 10.0, [Outcome(one(4), "failed", "a bug")], 100.0) is None


def test_what_a_machine_lacks_is_asked_for_once() -> None:
    tried = [Outcome(one(4, compiled=True), "impossible", "there is no compiler")]
    assert "impossible here as 4 x 4" in str(skip_reason(one(2, "full", compiled=True), 10.0, tried, 100.0))
    assert skip_reason(one(8), 10.0, tried, 100.0) is None


def test_a_peak_above_the_limit_skips_what_is_larger() -> None:
    tried = [measured(one(4), 1.0, mib=150.0)]
    assert "150 MiB" in str(skip_reason(one(8), 10.0, tried, 100.0))
    assert skip_reason(one(8), 10.0, tried, 200.0) is None
    assert skip_reason(one(8), 10.0, tried, None) is None


def test_an_estimate_rules_out_only_what_is_far_beyond_the_limit() -> None:
    assert skip_reason(one(), 100.0 * ESTIMATE_SLACK, [], 100.0) is None
    assert "estimated at 160 MiB" in str(skip_reason(one(), 160.0, [], 100.0))
    assert skip_reason(one(), 1e9, [], None) is None


# ---- the choice ------------------------------------------------------------------------------------------------------


@given(st.lists(some_measured, max_size=8, unique_by=lambda each: each.candidate), st.floats(50.0, 1100.0))
def test_the_choice_fits_is_as_fast_as_any_and_no_other_such_is_leaner(found: list[Outcome], limit: float) -> None:
    chosen = choose(found, limit, one())
    fitting = [each for each in found if fits(each, limit)]
    assert (chosen is None) == (not fitting)
    if chosen is None:
        return
    assert chosen in fitting
    fastest = min(each.median_s for each in fitting)
    assert chosen.median_s <= fastest * (1 + SAME)
    same = [each for each in fitting if each.median_s <= fastest * (1 + SAME)]
    assert chosen.peak_mib <= min(each.peak_mib for each in same) * (1 + SAME)  # type: ignore[type-var,operator]
    assert choose(list(reversed(found)), limit, one()) == chosen


def test_noise_does_not_move_a_run_away_from_its_configuration() -> None:
    own, other = one(4), one(8)
    assert choose([measured(own, 1.02, 101.0), measured(other, 1.0, 100.0)], 500.0, own).candidate == own  # type: ignore[union-attr]
    assert choose([measured(own, 1.02, 200.0), measured(other, 1.0, 100.0)], 500.0, own).candidate == other  # type: ignore[union-attr]
    assert choose([measured(own, 1.05, 100.0), measured(other, 1.0, 200.0)], 500.0, own).candidate == other  # type: ignore[union-attr]
    assert choose([measured(own, 1.05, 100.0), measured(other, 1.0, 200.0)], 150.0, own).candidate == own  # type: ignore[union-attr]


def test_candidates_take_turns_in_both_directions() -> None:
    a, b, c = one(1), one(2), one(4)
    assert [each for _, each in turns([a, b, c], 2)] == [a, b, c, c, b, a]
    assert [turn for turn, _ in turns([a, b], 3)] == [0, 0, 1, 1, 2, 2]


def test_turns_are_joined_and_one_that_fails_later_does_not_count() -> None:
    first, second = measured(one(), 1.0, 100.0, data_share=0.2), measured(one(), 2.0, 120.0, data_share=0.4)
    both = first.joined(second)
    assert both == second.joined(first)
    assert (both.median_s, both.peak_mib, both.data_share) == (1.0, 120.0, 0.2)
    gone = first.joined(Outcome(one(), "out_of_memory", "gone"))
    assert not fits(gone, 1e9)
    assert "earlier one passed" in gone.why


def test_who_gets_another_turn() -> None:
    own, near, far, gone = (
        measured(one(4), 9.0),
        measured(one(8), 1.0),
        measured(one(2), 3.1),
        Outcome(one(1), "failed"),
    )
    again = [each for each in (own, near, far, gone) if gets_another_turn(each, (own, near, far, gone), None, one(4))]
    assert again == [own, near]


def test_the_smallest_need_is_measured_where_anything_was() -> None:
    estimates = {one(1): 90.0, one(4): 200.0}
    assert "90 MiB, estimated of 1 x 16" in smallest_need([], estimates)
    assert "300 MiB, measured of 4 x 4" in smallest_need([measured(one(4), 1.0, 300.0)], estimates)


# ---- what became of a process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "errors", "kind", "says"),
    [
        (-signal.SIGKILL, "", "out_of_memory", "SIGKILL"),
        (1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out_of_memory", "2 GiB"),
        (1, "Traceback\nMemoryError", "out_of_memory", "MemoryError"),
        (1, "Traceback\nnumpy._core._exceptions._ArrayMemoryError: Unable to allocate", "out_of_memory", "Unable"),
        (1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "out_of_memory", "allocate"),
        (1, "RuntimeError: could not create a primitive", "out_of_memory", "primitive"),
        (1, "trainer.errors.DataError: 2 data workers need 9 MiB of shared memory", "out_of_memory", "shared"),
        (-signal.SIGSEGV, "", "failed", "SIGSEGV"),
        (1, "Traceback\nKeyError: 'x'", "failed", "exit code 1: KeyError"),
        (0, "", "failed", "exit code 0"),
    ],
)
def test_every_end_of_a_process_has_a_name(code: int, errors: str, kind: str, says: str) -> None:
    outcome = died(one(), code, errors)
    assert outcome.kind == kind
    assert says in outcome.why
    assert "\n" not in outcome.why


def test_a_candidate_that_trains_something_else_is_a_failure() -> None:
    reference = measured(one(4), 1.0, losses=(1.0, 0.9, 0.8))
    assert checked(measured(one(8), 1.0, losses=(1.0, 0.9001)), reference).kind == "measured"
    for losses in ((1.0, 0.92, 0.8), (float("nan"),)):
        wrong = checked(measured(one(8), 1.0, losses=losses), reference)
        assert wrong.kind == "failed"
        assert "does not train the same" in wrong.why
    assert checked(measured(one(8, compute="bf16"), 1.0, losses=(2.0,)), reference).kind == "measured"
    assert checked(reference, None) == reference


# ---- what is written -------------------------------------------------------------------------------------------------

BLOCK = """# a run
seed: 3   # of it all

trainer:
  # before
  steps: 12
  batch:   4   # the micro-batch
  activation_checkpointing:
    every: 3   # kept
    kind: "none"
  data: {size: 8, held_out: 4}
run: a

# the end
"""
CHOICE = changes(Candidate(8, 2, "full", True, "fp32"), one(4))


def test_other_lines_stay_as_they_are_byte_for_byte() -> None:
    after = rewritten(BLOCK, CHOICE)
    assert read_yaml(after)["trainer"] == {
        "steps": 12,
        "batch": 8,
        "accumulation": 2,
        "activation_checkpointing": {"every": 3, "kind": "full"},
        "compile": {"enabled": True},
        "data": {"size": 8, "held_out": 4},
    }
    expected = BLOCK.replace("batch:   4 ", "batch:   8 ").replace('"none"', "full")
    expected = expected.replace("  steps", "  accumulation: 2\n  compile: {enabled: true}\n  steps")
    assert after == expected
    assert rewritten(after, CHOICE) == after


@pytest.mark.parametrize(
    "text",
    [
        "{seed: 3, trainer: {steps: 12, compile: {}, batch: 4}}",
        BLOCK.replace("\n", "\r\n"),
        "\ufeff" + BLOCK,
        '{"seed": 3, "trainer": {"steps": 12, "batch": 4, "précision": "é"}}',
        "seed: &n 4\ntrainer:\n    batch: *n\n    accumulation: *n\n    steps: 2\n",
        "seed: 1\ntrainer: {steps: 2, batch: &b 4, log_every: *b}\nwords: [off, 'true', 1.0e-3]\n",
        "---\ntrainer:\n  steps: 3\n  batch: 1\n...\n",
    ],
)
def test_any_spelling_of_a_document_ends_as_the_same_document_with_the_choice_in_it(text: str) -> None:
    before, after = read_yaml(text), read_yaml(rewritten(text, CHOICE))
    for path, value in CHOICE:
        assert after["trainer"][path[0]] == value if len(path) == 1 else after["trainer"][path[0]][path[1]] == value
    for block in (before["trainer"], after["trainer"]):
        for key in ("batch", "accumulation", "activation_checkpointing", "compile"):
            block.pop(key, None)
    assert after == before


@given(
    st.dictionaries(st.sampled_from(("steps", "log_every", "device")), st.integers(0, 9) | st.text(), min_size=1),
    st.booleans(),
    st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False) | st.none() | st.booleans(), max_size=3),
)
def test_documents_of_any_content_survive(block: dict[str, Any], is_flow: bool, beside: dict[str, Any]) -> None:
    text = yaml.safe_dump({"rest": beside, "trainer": block}, default_flow_style=is_flow, allow_unicode=True)
    wanted = read_yaml(text)
    wanted["trainer"] |= {"batch": 8, "accumulation": 2}
    wanted["trainer"] |= {"activation_checkpointing": {"kind": "full"}, "compile": {"enabled": True}}
    assert read_yaml(rewritten(text, CHOICE)) == wanted


@pytest.mark.parametrize("text", [BLOCK.replace("\n", "\r\n"), "\ufeff" + BLOCK])
def test_line_ends_and_marks_stay(text: str) -> None:
    after = rewritten(text, CHOICE)
    assert set(text.split("\n")) - set(after.split("\n")) <= {
        line for line in text.split("\n") if "batch" in line or "kind" in line
    }
    assert after.count("\r\n") == (after.count("\n") if "\r" in text else 0)


def test_a_document_that_cannot_be_kept_is_refused() -> None:
    text = (
        "trainer: {batch: &b 4, log_every: *b, steps: 3}\nname: !!str 1e3\n"  # a dump would turn the name into 1000.0
    )
    with pytest.raises(TrainerError, match="by hand"):
        rewritten(text, CHOICE)


def test_lines_to_paste_are_the_choice(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\ntrainer:\n  steps: 3\n" + lines(CHOICE))
    assert own_candidate(load_document(path).config) == Candidate(8, 2, "full", True, "fp32")
    assert changes(one(8, compute="bf16"), one(4))[-1] == (("precision", "compute"), "bf16")


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_a_table_and_a_document_name_every_candidate() -> None:
    outcomes = [
        measured(one(4), 1.0, 100.0),
        measured(one(8), 0.5, 200.0),
        Outcome(one(16), "out_of_memory", "gone"),
        Outcome(one(1), "skipped", "why not"),
        measured(one(2), 0.1, 400.0),
    ]
    estimates = {each.candidate: 1.0 for each in outcomes}
    tuning = Tuning("c.yaml", 16, one(4), outcomes, estimates, None, 300.0, False, True)
    text = table(tuning)
    for words in ("as configured", "chosen", "out of memory: gone", "skipped: why not", "does not fit", "2.00 times"):
        assert words in text
    found = document(tuning, None)
    assert found["chosen"]["batch"] == 8
    assert found["speedup"] == 2.0
    assert [each["outcome"] for each in found["candidates"]].count("measured") == 3
    assert found["candidates"][2]["step_s"] is None
    assert "interrupted" in table(replace(tuning, complete=False))


def test_the_command_itself_loads_no_torch() -> None:
    program = (
        "import sys; import trainer.tuning.command; from trainer.__main__ import main;"
        "code = main(['tune', 'nowhere.yaml']);"
        "heavy = {'torch', 'numpy'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 78, done.stderr
    assert "nowhere.yaml cannot be read" in done.stderr
