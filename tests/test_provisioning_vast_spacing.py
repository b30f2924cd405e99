"""Spacing of calls: never below a threshold, longer after each refusal, and destroy waits for nobody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.vast import api
from provisioning.vast.spacing import MARGIN, MOST_WAIT_S, Route, Spacing, threshold_s

CREATE, DESTROY, LIST = api.CREATE, api.DESTROY, api.LIST
EVERY = (api.SEARCH, CREATE, LIST, api.SHOW, api.MANAGE, api.ACCOUNT, api.SSH_KEYS, api.CHARGES)
STEPS = st.lists(
    st.tuples(
        st.sampled_from((*EVERY, DESTROY)),
        st.floats(0, 20),
        st.floats(0, 10),
        st.sampled_from(("fine", "API requests too frequent", "create: endpoint threshold=4.5", "threshold=99999999")),
    ),
    max_size=40,
)


def no_jitter() -> float:
    return 0.0


def test_the_first_call_is_free_and_the_second_waits_from_the_end_of_the_first() -> None:
    spacing = Spacing(no_jitter)
    assert spacing.wait_s(CREATE, 100.0) == 0.0
    spacing.begin(CREATE, 100.0)
    assert spacing.wait_s(CREATE, 140.0) > 0.0, "one call at a time"
    spacing.end(CREATE, 130.0)
    assert spacing.wait_s(CREATE, 130.0) == pytest.approx(4.5 * 1.1)
    assert spacing.wait_s(CREATE, 132.0) == pytest.approx(4.5 * 1.1 - 2.0)
    assert spacing.wait_s(CREATE, 135.0) == 0.0


def test_a_call_that_does_not_wait_is_a_mistake() -> None:
    spacing = Spacing(no_jitter)
    spacing.begin(LIST, 0.0)
    spacing.end(LIST, 0.0)
    with pytest.raises(ValueError, match=r"GET /api/v1/instances/: 0\.600 s too early"):
        spacing.begin(LIST, 0.5)


def test_after_a_restart_every_route_counts_as_just_asked() -> None:
    spacing = Spacing(no_jitter, since_s=50.0)
    assert spacing.wait_s(CREATE, 50.0) == pytest.approx(4.95)
    assert spacing.wait_s(DESTROY, 51.0) == pytest.approx(2.3)
    assert spacing.wait_s(CREATE, 60.0) == 0.0


def test_backoff_doubles_up_to_a_minute_and_ends_with_an_answer() -> None:
    spacing, now_s, waits = Spacing(no_jitter), 0.0, []
    for _ in range(5):
        spacing.begin(DESTROY, now_s)
        waits.append(spacing.refused(DESTROY, now_s, "API requests too frequent"))
        now_s += waits[-1]
    assert waits == pytest.approx([3.3, 6.6, 13.2, 26.4, 52.8])
    spacing.begin(DESTROY, now_s)
    assert spacing.refused(DESTROY, now_s, "") == MOST_WAIT_S
    spacing.begin(DESTROY, now_s + 60.0)
    spacing.end(DESTROY, now_s + 60.0)
    assert spacing.wait_s(DESTROY, now_s + 60.0) == pytest.approx(3.3)


def test_create_is_punished_with_more_than_its_threshold() -> None:
    spacing = Spacing(no_jitter)
    spacing.begin(CREATE, 0.0)
    assert spacing.refused(CREATE, 0.0, "endpoint threshold=4.5") == pytest.approx(12 * 1.1)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("API requests too frequent: endpoint threshold=4.5", 4.5),
        ("Threshold: 12", 12.0),
        ("threshold = 3.", 3.0),
        ("API requests too frequent", None),
        ("threshold=", None),
        ("", None),
    ],
)
def test_the_threshold_is_read_out_of_the_text(said: str, seconds: float | None) -> None:
    assert threshold_s(said) == seconds


def test_a_threshold_that_was_not_published_is_learned() -> None:
    spacing = Spacing(no_jitter)
    spacing.begin(api.SEARCH, 0.0)
    assert spacing.refused(api.SEARCH, 0.0, "endpoint threshold=7.0") == pytest.approx(7.7)
    spacing.begin(api.SEARCH, 10.0)
    spacing.end(api.SEARCH, 10.0)
    assert spacing.wait_s(api.SEARCH, 10.0) == pytest.approx(7.7)


@given(STEPS, st.floats(0, 1))
def test_nothing_comes_below_its_threshold_and_no_wait_is_longer_than_a_minute(steps: list, jitter: float) -> None:
    spacing, now_s = Spacing(lambda: jitter), 0.0
    ended: dict[Route, float] = {}
    for route, pause_s, length_s, said in steps:
        now_s += pause_s
        wait_s = spacing.wait_s(route, now_s)
        assert 0.0 <= wait_s <= MOST_WAIT_S
        now_s += wait_s * (1 + 1e-9) + 1e-9
        spacing.begin(route, now_s)
        assert now_s - ended.get(route, -1e9) >= route.threshold_s * MARGIN - 1e-6
        now_s = ended[route] = now_s + length_s
        if said == "fine":
            spacing.end(route, now_s)
        else:
            named = threshold_s(said) or 0.0
            refused_s = spacing.refused(route, now_s, said)
            assert min(named, route.penalty_s or named, MOST_WAIT_S) <= refused_s <= MOST_WAIT_S


@given(STEPS)
def test_whatever_happens_to_other_routes_a_destroy_goes_at_once(steps: list) -> None:
    spacing, now_s = Spacing(no_jitter), 0.0
    for route, pause_s, _, said in steps:
        now_s += pause_s
        if route is DESTROY or spacing.wait_s(route, now_s) > 0.0:
            continue
        spacing.begin(route, now_s)
        assert spacing.wait_s(DESTROY, now_s) == 0.0, "while another is under way"
        spacing.end(route, now_s) if said == "fine" else spacing.refused(route, now_s, said)
        assert spacing.wait_s(DESTROY, now_s) == 0.0
