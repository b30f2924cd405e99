"""The fake really leaks: policies that give up leave machines behind where the loop leaves none."""

from __future__ import annotations

import pytest

from benchmarks.renting import table
from benchmarks.renting_peers import POLICIES, Client

SEEDS = range(8)


@pytest.mark.long
def test_policies_that_give_up_leave_machines_behind() -> None:
    left = {policy.name: [Client(seed, policy).play() for seed in SEEDS] for policy in POLICIES}
    for name, found in left.items():
        assert sum(one.finished for one in found) > 0, f"{name} never worked, so that its leaks would prove nothing"
        assert sum(one.machines for one in found) > 0
    once, _, longest = left.values()
    assert sum(one.machines for one in longest) <= sum(one.machines for one in once)


def test_a_schedule_is_the_same_each_time() -> None:
    assert Client(3, POLICIES[2]).play() == Client(3, POLICIES[2]).play()


def test_the_table_names_everybody() -> None:
    ours = dict.fromkeys(
        ("rents", "deaths", "requests", "finished", "waves", "billed_usd", "ours_usd", "metered_usd", "left_machines",
         "left_h", "left_usd", "doubles"), 1.0
    )  # fmt: skip
    left = {
        "schedules_with_leaks": 2, "machines": 3, "machines_without_kill": 1, "hours": 4.5, "usd": 5.25, "doubles": 6
    }  # fmt: skip
    peers = {policy.name: left for policy in POLICIES}
    found = table({"ours": ours, "peers": peers, "schedules": 7, "first_seed": 0, "failures": []})
    assert all(f"| {policy.name} | 2 | 3 | 1 | 4.5 | 5.25 | 6 |" in found for policy in POLICIES)
