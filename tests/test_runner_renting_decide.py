"""What follows from each answer, and what never follows from any sequence of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.base import Absent, Ambiguous, Handle, Offer, Present, Refused, Released, Request, Unknown
from runner.renting import decide
from runner.renting.decide import TROUBLE, Limits, NotMade, OfferGone
from runner.renting.leases import LEGAL, Change, Lease, State, Want, document_of, lease_of
from runner.renting.money import Meter, Prices, Terms

LIMITS = Limits()
TERMS = Terms(Prices(1.0, 0.1, 0.02, 0.01), 3600.0, 10.0, 10.0)
STAGES = ("requested", "created", "loading", "running", "reachable", "halted", "offline", "failed", "gone")


def intended(**changes: object) -> Lease:
    lease = Lease(1, "vast", "armature/h/1", "w", "study", TERMS, 3600.0, 0.0, Meter(0.0, ""), machine="m1", gpus=4)
    return replace(lease, **changes)  # type: ignore[arg-type]


def owned() -> Lease:
    return decide.after_create(intended(), Handle("vast", "armature/h/1", "7"), 0.0, 1.0).lease


def seen(lease: Lease, stage: str, at_s: float, why: str = "") -> Change:
    return decide.after_observation(lease, Present(stage, "7", why), at_s - 1.0, at_s, LIMITS)


def booted(at_s: float = 60.0) -> Lease:
    return decide.after_fit(seen(owned(), "reachable", at_s).lease, at_s + 1.0).lease


def watched(lease: Lease, stage: str, from_s: float, to_s: float) -> Change:
    """Seen every 60 s in one stage."""
    change = seen(lease, stage, from_s)
    at_s = from_s
    while at_s < to_s and not change.lease.because:
        at_s += 60.0
        change = seen(change.lease, stage, at_s)
    return change


def test_an_order_that_was_carried_out_is_owned() -> None:
    lease = owned()
    assert (lease.state, lease.host, lease.unsure_s) == (State.OWNED, "7", None)
    assert lease.handle == Handle("vast", "armature/h/1", "7")
    assert not decide.may_create(lease)


def test_what_a_refusal_left_is_owned_and_given_back() -> None:
    change = decide.after_create(intended(), Refused("bid too low", Handle("vast", "armature/h/1", "9")), 0.0, 1.0)
    assert (change.lease.state, change.lease.host) == (State.OWNED, "9")
    assert change.lease.because
    assert not change.lease.is_fault  # the machine is not to blame


def test_a_refusal_that_left_nothing_ends_the_lease() -> None:
    lease = decide.after_create(intended(), Refused("no credit"), 0.0, 1.0).lease
    assert lease.state is State.RELEASED
    assert lease.failed_s == 1.0
    gone = decide.after_create(intended(), OfferGone("taken"), 0.0, 1.0).lease
    assert gone.state is State.RELEASED
    assert gone.failed_s is None  # an offer that somebody else took is no failure


def test_an_order_that_was_turned_away_unread_may_be_placed_again() -> None:
    lease = decide.after_create(intended(), NotMade("429"), 0.0, 1.0).lease
    assert decide.may_create(lease)


def test_an_unknown_outcome_is_never_ordered_again_and_needs_lists_over_a_quiet_period() -> None:
    lease = decide.after_create(intended(), Ambiguous("502"), 0.0, 10.0).lease
    assert not decide.may_create(lease)
    lease = decide.after_observation(lease, Absent(), 5.0, 12.0, LIMITS).lease
    assert lease.absences == 0  # that list began before the order was out
    lease = decide.after_observation(lease, Absent(), 20.0, 22.0, LIMITS).lease
    lease = decide.after_observation(lease, Unknown("503"), 60.0, 62.0, LIMITS).lease
    lease = decide.after_observation(lease, Absent(), 69.0, 90.0, LIMITS).lease
    assert lease.state is State.INTENDED  # 59 s: not quiet for long enough
    lease = decide.after_observation(lease, Absent(), 70.0, 91.0, LIMITS).lease
    assert lease.state is State.RELEASED
    assert "complete lists" in lease.proof


def test_what_shows_up_late_is_adopted() -> None:
    lease = decide.after_create(intended(), Ambiguous("timeout"), 0.0, 10.0).lease
    lease = decide.after_observation(lease, Absent(), 30.0, 31.0, LIMITS).lease
    change = seen(lease, "loading", 40.0)
    assert (change.lease.state, change.lease.host, change.lease.unsure_s) == (State.OWNED, "7", None)
    assert change.told[0].what == "rented"


def test_after_a_restart_nothing_is_known_of_an_order() -> None:
    assert decide.after_restart(intended(), 50.0).unsure_s == 50.0
    assert decide.after_restart(owned(), 50.0) == owned()


@pytest.mark.parametrize(
    ("stage", "limit_s"),
    [("requested", 180), ("created", 180), ("loading", 1200), ("running", 180), ("reachable", 300)],
)
def test_each_stage_of_a_start_has_its_own_deadline(stage: str, limit_s: float) -> None:
    lease = replace(owned(), stage="", seen_s=100.0)
    assert not watched(lease, stage, 100.0, 100.0 + limit_s - 61.0).lease.because
    change = watched(lease, stage, 100.0, 100.0 + limit_s + 1.0)
    assert change.lease.because
    assert change.lease.is_fault
    assert change.told[0].what == TROUBLE


def test_a_silence_accuses_nobody() -> None:
    lease = seen(owned(), "loading", 10.0).lease
    assert not seen(lease, "loading", 50_000.0).lease.because


@pytest.mark.parametrize("stage", ["failed", "gone", "offline", "halted"])
def test_an_end_before_it_was_of_use_is_told_at_once(stage: str) -> None:
    change = seen(owned(), stage, 20.0, "OCI runtime create failed")
    assert change.lease.because
    assert "OCI" in change.told[0].reason
    assert change.lease.failed_s is not None
    assert change.lease.is_fault is (stage != "halted")  # who is outbid has a good machine


def test_a_paused_machine_loses_its_runs_and_gets_a_chance() -> None:
    change = seen(booted(), "halted", 120.0, "outbid")
    assert not change.lease.is_ready
    assert not change.lease.because
    assert "its runs wait" in change.told[0].reason
    lease = seen(change.lease, "loading", 180.0).lease
    lease = seen(lease, "reachable", 240.0).lease
    assert not lease.is_ready  # it must prove itself anew
    again = decide.after_fit(lease, 241.0)
    assert again.lease.is_ready
    assert "again" in again.told[0].reason


@pytest.mark.parametrize(("stage", "limit_s"), [("halted", LIMITS.halted_s), ("offline", LIMITS.offline_s)])
def test_a_machine_that_stays_away_is_given_back(stage: str, limit_s: float) -> None:
    assert not watched(booted(), stage, 120.0, 120.0 + limit_s - 61.0).lease.because
    assert watched(booted(), stage, 120.0, 120.0 + limit_s + 1.0).lease.because


def test_a_pause_may_last_as_long_as_the_work_that_it_interrupts() -> None:
    worked_s = 4 * LIMITS.halted_s
    lease = replace(booted(), meter=replace(booted().meter, gpu_s=worked_s))
    assert not watched(lease, "halted", 120.0, 120.0 + worked_s - 60.0).lease.because
    assert "halted" in watched(lease, "halted", 120.0, 120.0 + worked_s + 120.0).lease.because


def test_one_that_was_ready_is_not_given_up_by_the_limits_of_a_first_start() -> None:
    """It was away, is there again, and our own line to it fails: what it holds has not come home."""
    back = seen(seen(booted(), "offline", 120.0).lease, "reachable", 180.0).lease
    assert back.fit_s is None
    kept = watched(back, "reachable", 240.0, 240.0 + 2 * LIMITS.unfit_s)
    assert not kept.lease.because
    assert watched(kept.lease, "reachable", 240.0, 300.0 + LIMITS.offline_s).lease.because


def test_one_that_was_ready_and_is_not_fit_any_more_is_left_before_it_is_given_back() -> None:
    back = seen(seen(booted(), "offline", 120.0).lease, "reachable", 180.0).lease
    change = decide.after_unfit(back, "3 of 4 GPUs", 200.0)
    left = change.lease
    assert left.leaving == "it is not fit for runs: 3 of 4 GPUs"
    assert left.is_kept
    assert not left.is_ready
    assert "brought home first" in change.told[0].reason
    assert decide.after_fit(left, 210.0).lease is left
    assert decide.after_unfit(left, "again", 210.0).lease is left
    assert watched(left, "reachable", 240.0, 300.0 + LIMITS.offline_s).lease.is_kept
    gone = decide.give_back(left, left.leaving, 9000.0)
    assert gone.is_fault


def test_a_container_that_started_again_is_not_ready() -> None:
    change = seen(booted(), "loading", 120.0)
    assert not change.lease.is_ready
    assert not change.lease.because


def test_the_end_of_its_life_of_the_money_and_of_the_want() -> None:
    assert decide.after_time(booted(), True, 0.0, 3599.0).lease == booted()
    assert "time is over" in decide.after_time(booted(), True, 0.0, 3600.0).lease.because
    bounded = replace(booted(), max_usd=2.0)
    assert not decide.after_time(bounded, True, 1.99, 10.0).lease.because
    assert "max_usd" in decide.after_time(bounded, True, 2.0, 10.0).lease.because
    assert decide.after_time(owned(), False, 0.0, 10.0).lease.because
    # What was ready holds something to bring home: it is not taken away because the want is gone.
    assert not decide.after_time(booted(), False, 0.0, 10.0).lease.because


def test_a_machine_that_vanishes_is_asked_for_and_not_just_believed_gone() -> None:
    lease = booted()
    assert not decide.after_observation(lease, Absent(), lease.seen_s + 59.0, 200.0, LIMITS).lease.because
    change = decide.after_observation(lease, Absent(), lease.seen_s + 60.0, 200.0, LIMITS)
    assert change.lease.because
    assert change.lease.state is State.OWNED


def test_an_intent_that_nobody_wants_is_forgotten_only_if_nothing_can_exist() -> None:
    lease = decide.give_back(intended(), "not wanted", 5.0)
    assert decide.may_forget(lease)
    assert decide.forgotten(Change(lease), 6.0).lease.proof.startswith("never made")
    assert not decide.may_forget(replace(lease, unsure_s=5.0))
    assert not decide.may_forget(owned())


def test_the_first_reason_of_a_return_stays() -> None:
    lease = decide.give_back(booted(), "first", 5.0)
    assert decide.give_back(lease, "second", 6.0, is_fault=True) == lease


def test_a_fit_answer_that_comes_too_late_changes_nothing() -> None:
    lease = decide.give_back(seen(owned(), "reachable", 10.0).lease, "its time is over", 11.0)
    assert decide.after_fit(lease, 12.0).lease == lease
    assert decide.after_unfit(lease, "2 of 4 GPUs", 12.0).lease == lease


WANT = Want("w", Request(4, 1, 1), "study", 10.0)


def offer(number: int, machine: str) -> Offer:
    return Offer("vast", str(number), 4, 8, 1.0, machine)


def test_the_best_offer_that_can_be_paid_and_is_not_on_a_bad_machine() -> None:
    failed = replace(decide.give_back(owned(), "unfit", 5.0, is_fault=True), state=State.RELEASED)
    offers = [(offer(1, "m1"), 2.0), (offer(2, "m2"), 3.0)]
    assert decide.choose(WANT, offers, [failed], 10.0, LIMITS).offer == offers[1][0]
    assert decide.choose(WANT, offers, [failed], 10.0 + LIMITS.bad_machine_s, LIMITS).offer == offers[0][0]
    assert "nothing" in decide.choose(WANT, [], [], 10.0, LIMITS).why
    assert "machines that failed" in decide.choose(WANT, offers[:1], [failed], 10.0, LIMITS).why


def test_what_is_owned_counts_with_its_whole_life() -> None:
    held = booted()  # 1.1 USD an hour for an hour, and 0.3 USD of traffic
    assert held.bound_usd(60.0) == pytest.approx(1.4, abs=0.05)
    assert decide.choose(WANT, [(offer(2, "m2"), 8.5)], [held], 60.0, LIMITS).offer is not None
    assert "max_usd is 10.00" in decide.choose(WANT, [(offer(2, "m2"), 8.7)], [held], 60.0, LIMITS).why
    other = replace(held, purse="another study")
    assert decide.choose(WANT, [(offer(2, "m2"), 9.9)], [other], 60.0, LIMITS).offer is not None


def test_too_many_failures_make_a_want_wait() -> None:
    failed = [replace(intended(), id=n, state=State.RELEASED, failed_s=100.0 * n) for n in range(1, 6)]
    assert decide.why_not_rent(WANT, failed[:4], 600.0, LIMITS) == ""
    assert "5 machines have failed" in decide.why_not_rent(WANT, failed, 600.0, LIMITS)
    assert decide.why_not_rent(WANT, failed, 100.0 + LIMITS.failures_s, LIMITS) == ""
    assert decide.why_not_rent(replace(WANT, key="other"), failed, 600.0, LIMITS) == ""


def test_a_life_is_only_made_longer() -> None:
    assert decide.extended(booted(), 3000.0) == booted()
    longer = decide.extended(booted(), 7200.0)
    assert (longer.ttl_end_s, longer.terms.ceiling_usd) == (7200.0, pytest.approx(2.5))


answers = st.one_of(
    st.sampled_from(STAGES).map(lambda stage: Present(stage, "7")),
    st.just(Absent()),
    st.just(Unknown("no answer")),
    st.just(Handle("vast", "armature/h/1", "7")),
    st.just(Refused("no")),
    st.just(Refused("no", Handle("vast", "armature/h/1", "7"))),
    st.just(Ambiguous("?")),
    st.just(NotMade("429")),
    st.just(OfferGone("gone")),
    st.just(Released("200: destroyed")),
    st.sampled_from(["fit", "unfit", "time", "unwanted", "restart", "told"]),
)


@settings(max_examples=300)
@given(st.lists(st.tuples(answers, st.floats(0.0, 3000.0)), max_size=30))
def test_no_sequence_of_answers_forgets_what_may_be_paid_for(steps: list[tuple[object, float]]) -> None:
    lease, now_s, doubt_s, exists = intended(), 0.0, None, False
    for answer, span_s in steps:
        before, now_s = lease, now_s + span_s
        if isinstance(answer, Handle | Refused | Ambiguous | NotMade | OfferGone):
            if not decide.may_create(lease):
                continue  # an order is placed once
            lease = decide.after_create(lease, answer, now_s, now_s).lease
            if isinstance(answer, Ambiguous):
                doubt_s = now_s
        elif isinstance(answer, Present | Absent | Unknown):
            lease = decide.after_observation(lease, answer, now_s, now_s, LIMITS).lease
            if isinstance(answer, Absent) and before.is_open and not lease.is_open:
                assert doubt_s is not None
                assert now_s - doubt_s >= LIMITS.quiet_s
        elif isinstance(answer, Released):
            if lease.state is State.OWNED and lease.because:
                lease = decide.after_release(lease, answer, now_s, now_s).lease
        elif answer == "fit":
            lease = decide.after_fit(lease, now_s).lease
        elif answer == "unfit":
            lease = decide.after_unfit(lease, "fewer GPUs", now_s).lease if lease.state is State.OWNED else lease
        elif answer == "restart":
            lease = decide.after_restart(lease, now_s)
            doubt_s = now_s if lease.unsure_s == now_s else doubt_s
        elif answer == "told":
            lease = decide.give_back(lease, "done", now_s)
        else:
            lease = decide.after_time(lease, answer == "time", 0.0, now_s).lease
        assert lease.state in LEGAL[before.state]
        exists = exists or lease.state is State.OWNED
        if before.state is State.OWNED and lease.state is State.RELEASED:
            assert isinstance(answer, Released)  # nothing but the provider's word ends what exists
        if before.because:
            assert lease.because == before.because
        if not lease.is_open:
            assert lease.proof
            assert not lease.is_ready
        stored = json.loads(json.dumps(document_of(lease)))
        columns = {
            "id": lease.id, "provider": lease.provider, "label": lease.label, "host": lease.host,
            "state": str(lease.state), "slots_requested": lease.slots_requested, "created_s": lease.created_s,
            "released_s": lease.released_s, "proof": lease.proof, "charged_usd": lease.charged_usd,
        }  # fmt: skip
        assert lease_of(stored, **columns) == lease
