"""Every condition, from measures made by hand: where it holds, fails and is not shown, and at the border."""

from dataclasses import replace

import pytest

from action_tokenizers.diagnostics.conditions import ADVICE, SCALE, advise, decide, silent_failure
from action_tokenizers.diagnostics.measure import Kind, Measure, clopper_pearson
from action_tokenizers.diagnostics.report import Condition, Status
from action_tokenizers.diagnostics.smoothness import FINE, LEAST_EPISODES, RARE

HOLDS, FAILS, NOT_SHOWN = Status.HOLDS, Status.FAILS, Status.NOT_SHOWN
DIMS = 4
N = 20

ORDER = [
    "held_out",
    "mean_error",
    "rare_errors",
    "bounded_error",
    "values_reproduced",
    "smooth_tokenizer",
    "no_silent_failure",
    "smooth_pairs",
    "small_gain",
    "smooth_policy",
    "stable_dynamics",
    "replay_outcome",
]


def measure(name, value, *, kind=Kind.CONSISTENT, interval=None, n=N, failed=0, parts=None, caveat=""):
    counted = {"episodes": n, "failed": failed}
    return Measure(name, value, "half range", kind, interval, n=counted, caveat=caveat, parts=parts or {})


def rare(hits, n=N):
    interval = list(clopper_pearson(hits, n))
    return measure("error_max", 0.1, parts={"beyond_threshold": {"hits": hits, "n": n, "interval": interval}})


def jumps(name, low, n=N):
    """A share of episodes whose interval begins at `low`; far is beyond half a half range."""
    return measure(name, (low + 1) / 2, interval=(low, 1.0), n=n, parts={"threshold": 0.5})


def excess(value, kind=Kind.EXACT, switches=()):
    return measure("excess_jump", value, kind=kind, parts={"discrete": {"dims": list(switches)}})


def alarm(state, n=N):
    """The two shares that put the jump alarm on, off, or leave it open."""
    low, n = (1.0 if state else 0.0), (LEAST_EPISODES - 1 if state is None else n)
    return {name: jumps(name, low, n) for name in ("episode_jump", "episode_jump_fine")}


def spread(value):
    return {} if value is None else {"expert_spread": measure("expert_spread", value)}


def good():
    """What an audit always takes, and nothing against it."""
    always = (
        measure("error_mean", 0.05, interval=(0.04, 0.06)),
        rare(0),
        measure("error_sup", 0.1, kind=Kind.EXACT),
        excess(0.6),
        measure("hold_bias", 0.01, interval=(0.0, 0.02)),
    )
    return {**{m.name: m for m in always}, **alarm(False)}


def found(name, *changed, fingerprints=3, seen=(), dims=DIMS, without=()):
    measures = {**good(), **{m.name: m for m in changed}}
    for left_out in without:
        del measures[left_out]
    decided = decide(measures, fingerprints=fingerprints, seen=dict(seen), action_dim=dims)
    return next(c for c in decided if c.name == name)


def test_conditions_come_in_one_order_under_names_of_their_own():
    decided = decide(good(), fingerprints=3, seen={}, action_dim=DIMS)
    assert [c.name for c in decided] == ORDER


def test_what_is_not_shown_says_what_would_decide_it_and_nothing_else_does():
    sparse = {**good(), **alarm(None), "error_max": rare(0, 3), "error_mean": measure("error_mean", 0.05)}
    for measures in (good(), sparse):
        for condition in decide(measures, fingerprints=None, seen={}, action_dim=DIMS):
            assert bool(condition.needs) == (condition.status is NOT_SHOWN), condition.name
            assert condition.statement.endswith(".")
            assert condition.evidence
            assert condition.source


class TestHeldOut:
    def test_holds_where_no_chunk_is_known(self):
        condition = found("held_out")
        assert condition.status is HOLDS
        assert condition.evidence.startswith("none of 3 fingerprints")

    def test_fails_where_one_is_and_names_the_episodes(self):
        condition = found("held_out", seen={"aa": 7, "bb": 2, "cc": 7})
        assert condition.status is FAILS
        assert condition.evidence.startswith("3 of 3 fingerprints of its fit data occur in episodes 2, 7:")

    def test_many_episodes_are_not_all_named(self):
        condition = found("held_out", seen={str(i): i for i in range(20)}, fingerprints=20)
        assert "episodes 0, 1, 2, 3, 4, 5, 6, 7, ...:" in condition.evidence

    @pytest.mark.parametrize("fingerprints", [None, 0])
    def test_is_not_shown_without_provenance(self, fingerprints):
        assert found("held_out", fingerprints=fingerprints).status is NOT_SHOWN


class TestMeanError:
    limit = SCALE * DIMS**0.5

    @pytest.mark.parametrize(
        ("interval", "status"),
        [
            ((0.0, limit), HOLDS),
            ((0.0, limit * 1.001), NOT_SHOWN),
            ((limit, limit * 2), NOT_SHOWN),
            ((limit * 1.001, limit * 2), FAILS),
            (None, NOT_SHOWN),
        ],
    )
    def test_is_decided_by_its_whole_interval(self, interval, status):
        assert found("mean_error", measure("error_mean", 0.2, interval=interval)).status is status

    def test_may_be_larger_in_more_dims(self):
        large = measure("error_mean", 0.25, interval=(0.21, 0.29))
        assert found("mean_error", large, dims=4).status is FAILS
        assert found("mean_error", large, dims=9).status is HOLDS


class TestRareErrors:
    @pytest.mark.parametrize("hits", range(6))
    def test_fails_where_the_share_is_surely_above_one_percent(self, hits):
        low, _ = clopper_pearson(hits, N)
        assert found("rare_errors", rare(hits)).status is (FAILS if low > RARE else HOLDS)

    def test_two_of_twenty_are_enough_and_one_is_not(self):
        assert [found("rare_errors", rare(hits)).status for hits in (0, 1, 2)] == [HOLDS, HOLDS, FAILS]

    def test_claims_no_more_than_it_tests(self):
        """One hit is no ground to fail, and none to say that there is no hit."""
        condition = found("rare_errors", rare(1))
        assert condition.evidence.startswith("1 of 20 episodes")
        assert "No episode" not in condition.statement

    @pytest.mark.parametrize(("n", "status"), [(LEAST_EPISODES - 1, NOT_SHOWN), (LEAST_EPISODES, FAILS)])
    def test_needs_ten_episodes(self, n, status):
        assert found("rare_errors", rare(n, n)).status is status

    def test_border_is_not_beyond(self):
        share = {"hits": 1, "n": N, "interval": [RARE, 0.2]}
        assert found("rare_errors", measure("error_max", 0.1, parts={"beyond_threshold": share})).status is HOLDS


class TestBoundedError:
    far = 5 * 0.1  # of a mean error of .05

    @pytest.mark.parametrize(("value", "status"), [(far, HOLDS), (far * 1.001, FAILS)])
    @pytest.mark.parametrize("kind", [Kind.EXACT, Kind.LOWER])
    def test_border_holds(self, value, status, kind):
        assert found("bounded_error", measure("error_sup", value, kind=kind)).status is status

    def test_a_coarse_tokenizer_may_err_by_more(self):
        mean = measure("error_mean", 0.2, interval=(0.2, 0.2))
        assert found("bounded_error", measure("error_sup", 2.0, kind=Kind.EXACT), mean).status is HOLDS
        assert found("bounded_error", measure("error_sup", 2.01, kind=Kind.EXACT), mean).status is FAILS

    def test_says_how_the_number_was_found(self):
        assert "exactly 0.2" in found("bounded_error", measure("error_sup", 0.2, kind=Kind.EXACT)).evidence
        assert "as far as searched, 0.2" in found("bounded_error", measure("error_sup", 0.2, kind=Kind.LOWER)).evidence
        assert "at most 0.2" in found("bounded_error", measure("error_sup", 0.2, kind=Kind.UPPER)).evidence

    @pytest.mark.parametrize(("searched", "status"), [(0.4, HOLDS), (0.6, FAILS)])
    def test_a_bound_above_the_border_accuses_nobody(self, searched, status):
        """What may be as large as that need not be: the search beside the bound decides."""
        domains = {"hull": {"value": 0.1, "ratio": 2.0}, "range": {"value": searched, "ratio": 3.0}}
        condition = found("bounded_error", measure("error_sup", 0.9, kind=Kind.UPPER, parts={"domains": domains}))
        assert condition.status is status
        assert f"as far as searched, {searched}" in condition.evidence

    def test_no_error_at_all(self):
        mean = measure("error_mean", 0.0, interval=(0.0, 0.0))
        condition = found("bounded_error", measure("error_sup", 0.6, kind=Kind.EXACT), mean)
        assert condition.status is FAILS
        assert "beyond any multiple of the mean" in condition.evidence

    def test_is_not_shown_without_a_number(self):
        condition = found("bounded_error", measure("error_sup", None, caveat="nothing to search"))
        assert (condition.status, condition.evidence) == (NOT_SHOWN, "nothing to search")


class TestValuesReproduced:
    @pytest.mark.parametrize(("value", "status"), [(0.0, HOLDS), (SCALE, HOLDS), (SCALE * 1.001, FAILS)])
    def test_border_holds(self, value, status):
        assert found("values_reproduced", measure("hold_bias", value)).status is status

    def test_nothing_that_holds_still_is_nothing_to_reproduce(self):
        condition = found("values_reproduced", measure("hold_bias", None))
        assert condition.status is HOLDS
        assert "no dim holds still" in condition.evidence


class TestSmoothTokenizer:
    @pytest.mark.parametrize(("state", "status"), [(None, NOT_SHOWN), (False, HOLDS), (True, FAILS)])
    def test_is_the_jump_alarm(self, state, status):
        assert found("smooth_tokenizer", *alarm(state).values()).status is status

    @pytest.mark.parametrize(("coarse", "fine"), [(0.5, RARE), (RARE, 0.5), (0.5, 0.0), (0.0, 0.5)])
    def test_one_scale_alone_does_not_fail(self, coarse, fine):
        shares = jumps("episode_jump", coarse), jumps("episode_jump_fine", fine)
        assert found("smooth_tokenizer", *shares).status is HOLDS

    def test_claims_no_more_than_it_tests(self):
        assert "never" not in found("smooth_tokenizer", jumps("episode_jump", 0.005)).statement

    @pytest.mark.parametrize(
        ("jump", "said"),
        [
            (excess(0.49), "no jump beyond 0.5, which would be far, exists (the largest is 0.49)"),
            (excess(0.49, Kind.LOWER), "no jump beyond 0.5, which would be far, was found (the largest is 0.49)"),
            (excess(0.49, switches=[6]), "exists (the largest is 0.49, steps of switches apart)"),
            (excess(0.5), None),
            (excess(None), None),
        ],
    )
    @pytest.mark.parametrize("state", [False, None])
    def test_says_where_the_alarm_could_not_go_off(self, jump, said, state):
        """A coarse tokenizer passes because nothing counts as far, which is no praise."""
        evidence = found("smooth_tokenizer", jump, *alarm(state).values()).evidence
        assert said in evidence if said else "alarm" not in evidence

    def test_an_alarm_that_is_on_could(self):
        assert "could not" not in found("smooth_tokenizer", excess(0.4), *alarm(True).values()).evidence


NARROW, WIDE = FINE / 2, FINE * 2


def of_relative(measure, mean_error, **more):
    """As a tokenizer of relative actions has it: in units of its own, where its mean error is another."""
    own = {"unit": [0.1], "mean_error": mean_error, **more}
    return replace(measure, parts={**measure.parts, "of_relative": own})


class TestRelative:
    """Errors are in half ranges of absolute actions, the alarm in half spans of the relative ones."""

    def own(self, mean_error, jump=0.6, *, on=False):
        return [of_relative(each, mean_error, excess_jump=jump) for each in alarm(on).values()]

    def test_only_a_jump_in_the_units_of_the_alarm_is_held_against_it(self):
        assert "no jump beyond" in found("smooth_tokenizer", excess(0.4)).evidence
        assert "no jump beyond" not in found("smooth_tokenizer", excess(0.4), *self.own(0.05)).evidence
        said = found("smooth_tokenizer", excess(0.6), *self.own(0.05, 0.4)).evidence
        assert "no jump beyond 0.5 half spans of the relative actions" in said
        assert "the largest is 0.4" in said

    @pytest.mark.parametrize(
        ("own", "status"), [(0.05, HOLDS), (0.199 * DIMS**0.5, HOLDS), (0.2 * DIMS**0.5, NOT_SHOWN)]
    )
    def test_an_error_as_large_as_what_is_coded_blinds_it(self, own, status):
        """However small it is beside the range of absolute actions."""
        jump = excess(0.01)
        assert found("smooth_tokenizer", jump, *self.own(own, 0.01)).status is status
        assert found("no_silent_failure", jump, *self.own(own, 0.01)).status is status

    @pytest.mark.parametrize(("jump", "status"), [(0.2, HOLDS), (0.31, NOT_SHOWN), (0.99, NOT_SHOWN), (1.01, HOLDS)])
    def test_jumps_of_three_to_ten_mean_errors_hide_from_it(self, jump, status):
        """Both in units of its own, where the mean error is .1, which raises the threshold; elsewhere J_q is small."""
        assert found("smooth_tokenizer", excess(0.01), *self.own(0.1, jump)).status is status
        assert found("smooth_tokenizer", excess(0.01), *self.own(0.01, jump)).status is HOLDS

    def test_rare_and_bounded_errors_are_held_against_what_is_coded(self):
        """In half ranges of absolute actions none could be as large as what counts as far."""
        hits = {"hits": N, "n": N, "interval": list(clopper_pearson(N, N))}
        turned = of_relative(rare(0), 0.08, beyond_threshold=hits)
        assert found("rare_errors", rare(0)).status is HOLDS
        condition = found("rare_errors", turned)
        assert condition.status is FAILS
        assert f"{N} of {N} episodes hold an error above 0.8 half spans of the relative actions" in condition.evidence
        sup = measure("error_sup", 0.1, kind=Kind.EXACT)
        condition = found("bounded_error", of_relative(sup, 0.05, value=2.0, domains=None))
        assert condition.status is FAILS
        assert "exactly 2, 40 times the mean, against 0.5 half spans of the relative actions" in condition.evidence
        searched = {"range": {"value": 0.3}, "edges": {"value": 0.4}}
        upper = measure("error_sup", 0.1, kind=Kind.UPPER)
        condition = found("bounded_error", of_relative(upper, 0.05, value=2.0, domains=searched))
        assert (condition.status, "searched, 0.4," in condition.evidence) == (HOLDS, True)

    @pytest.mark.parametrize("name", ["rare_errors", "bounded_error"])
    def test_an_error_as_large_as_what_is_coded_shows_nothing(self, name):
        none = {"hits": 0, "n": N, "interval": list(clopper_pearson(0, N))}
        blinded = [
            of_relative(rare(0), 5.0, beyond_threshold=none),
            of_relative(measure("error_sup", 0.1, kind=Kind.EXACT), 5.0, value=1.0, domains=None),
        ]
        assert found(name, *blinded).status is NOT_SHOWN

    def test_the_flag_asks_for_the_spread_in_the_units_of_the_alarm(self):
        narrow = spread(NARROW)["expert_spread"]
        wide = replace(narrow, parts={"of_relative": WIDE})
        on = {each.name: each for each in self.own(0.05, on=True)}
        assert silent_failure({**good(), **on, "expert_spread": narrow}) is True
        assert silent_failure({**good(), **on, "expert_spread": wide}) is False
        condition = found("no_silent_failure", wide, *on.values())
        assert condition.status is NOT_SHOWN
        assert "at most 0.08 half spans of the relative actions, against 0.04" in condition.evidence


class TestSilentFailure:
    @pytest.mark.parametrize(
        ("state", "width", "flag"),
        [
            (None, None, None),
            (None, NARROW, None),
            (None, WIDE, None),
            (False, None, False),
            (False, NARROW, False),
            (False, WIDE, False),
            (True, None, None),
            (True, NARROW, True),
            (True, FINE, False),
            (True, WIDE, False),
        ],
    )
    def test_truth_table(self, state, width, flag):
        measures = {**good(), **alarm(state), **spread(width)}
        assert silent_failure(measures) is flag
        condition = found("no_silent_failure", *measures.values())
        # an alarm beside an expert that looks random stays open: it may act on what the states leave out
        assert condition.status is (
            NOT_SHOWN if state and not flag else {None: NOT_SHOWN, False: HOLDS, True: FAILS}[flag]
        )

    def test_a_spread_that_is_not_shown_is_none(self):
        assert silent_failure({**alarm(True), "expert_spread": measure("expert_spread", None)}) is None

    def test_asks_for_what_is_missing(self):
        few = found("no_silent_failure", *alarm(None).values(), *spread(NARROW).values())
        assert few.needs == f"{LEAST_EPISODES} held-out episodes"
        assert found("no_silent_failure", *alarm(True).values()).needs == "states"

    def test_tells_both_halves(self):
        condition = found("no_silent_failure", *alarm(True).values(), *spread(NARROW).values())
        assert condition.evidence.startswith(
            "jump alarm on; spread of the expert's action given the state: at most 0.02"
        )
        assert "not measured" in found("no_silent_failure").evidence


class TestSmoothPairs:
    @pytest.mark.parametrize(("far", "status"), [(3.99, HOLDS), (4.0, NOT_SHOWN)])
    def test_where_no_two_actions_are_that_far_apart_nothing_is_shown(self, far, status):
        condition = found("smooth_pairs", self.violation((0.0, 0.0), far))
        assert (condition.status, "smaller error" in condition.needs) == (status, status is NOT_SHOWN)

    def violation(self, interval, far=1.0):
        parts = {"scales": [0.5, far], "scale": far, "nearest": {"recorded": [0.9, 0.25]}}
        return measure("excess_violation", 0.03, interval=interval, parts=parts)

    @pytest.mark.parametrize(
        ("interval", "status"),
        [
            ((-0.1, 0.05), HOLDS),
            ((RARE, 0.05), HOLDS),
            ((RARE, 0.051), NOT_SHOWN),
            ((0.03, 0.05), HOLDS),
            ((0.049, 0.2), NOT_SHOWN),
            ((0.051, 0.2), FAILS),
        ],
    )
    def test_is_decided_by_the_whole_interval(self, interval, status):
        assert found("smooth_pairs", self.violation(interval)).status is status

    def test_tells_how_far_apart_the_recorded_pairs_are_at_the_same_scale(self):
        assert found("smooth_pairs", self.violation((0.0, 0.04))).evidence.endswith(
            "25.0% of the recorded pairs are far apart themselves"
        )

    @pytest.mark.parametrize(
        "changed",
        [
            [],
            [measure("excess_violation", None, caveat="one episode")],
            [measure("excess_violation", 0.0, caveat="one episode")],
        ],
    )
    def test_is_not_shown_without_an_interval(self, changed):
        condition = found("smooth_pairs", *changed)
        assert condition.status is NOT_SHOWN
        assert condition.evidence == ("one episode" if changed else "not measured")


class TestSmallGain:
    @pytest.mark.parametrize(
        ("gain", "interval", "status"),
        [
            (0.5, (0.2, 0.99), HOLDS),
            (0.5, (0.2, 1.0), NOT_SHOWN),
            (0.5, (0.2, float("inf")), NOT_SHOWN),
            (0.5, None, NOT_SHOWN),
            (30.0, (20.0, 40.0), NOT_SHOWN),
        ],
    )
    def test_holds_where_the_upper_ends_are_below_one_and_never_fails(self, gain, interval, status):
        """The condition is sufficient: without it nothing is known."""
        slope = measure("expert_lipschitz", 0.9, interval=(0.8, 1.0))
        condition = found("small_gain", measure("dynamics_gain", gain, interval=interval), slope)
        assert condition.status is status

    def test_multiplies_gain_and_slope(self):
        condition = found("small_gain", measure("dynamics_gain", 0.25), measure("expert_lipschitz", 3.0))
        assert condition.evidence.startswith("L g = 3 x 0.25 = 0.75 ")

    @pytest.mark.parametrize(
        "changed",
        [
            [],
            [measure("dynamics_gain", 0.5)],
            [measure("expert_lipschitz", 0.5)],
            [measure("dynamics_gain", None), measure("expert_lipschitz", 0.5)],
            [measure("dynamics_gain", 0.5), measure("expert_lipschitz", None)],
        ],
    )
    def test_needs_both(self, changed):
        assert found("small_gain", *changed).status is NOT_SHOWN


class TestSmoothPolicy:
    def jump(self, interval, kind=Kind.CONSISTENT, share=0.03, recorded=0.0, far=0.5):
        near = {"share": [0.9, share], "recorded": [0.9, recorded], "excess_interval": [(0.8, 1.0), interval]}
        parts = {"multiple": [3, 5], "threshold": [0.3, far], "headline": 5, "neighbours": near}
        return measure("policy_jump", 0.5, kind=kind, parts=parts)

    @pytest.mark.parametrize(("far", "status"), [(3.99, HOLDS), (4.0, NOT_SHOWN)])
    def test_where_no_two_actions_are_that_far_apart_nothing_is_shown(self, far, status):
        assert found("smooth_policy", self.jump((0.0, 0.0), far=far)).status is status

    @pytest.mark.parametrize(
        ("interval", "kind", "status"),
        [
            ((0.0, 0.05), Kind.CONSISTENT, HOLDS),
            ((0.0, 0.05), Kind.UPPER, HOLDS),
            ((0.0, 0.051), Kind.CONSISTENT, NOT_SHOWN),
            ((0.05, 0.1), Kind.CONSISTENT, NOT_SHOWN),
            ((0.051, 0.1), Kind.CONSISTENT, FAILS),
            ((0.051, 0.1), Kind.UPPER, NOT_SHOWN),
            (None, Kind.CONSISTENT, NOT_SHOWN),
        ],
    )
    def test_only_what_is_computed_can_fail(self, interval, kind, status):
        assert found("smooth_policy", self.jump(interval, kind)).status is status

    def test_far_actions_of_the_expert_are_not_the_policys(self):
        condition = found("smooth_policy", self.jump((-0.02, 0.02), share=0.8, recorded=0.8))
        assert condition.status is HOLDS
        assert "of the recorded ones 0.8" in condition.evidence

    def test_says_where_the_number_is_a_bound(self):
        assert "neighbours: 0.03, " in found("smooth_policy", self.jump((0.0, 0.05))).evidence
        assert "neighbours: at most 0.03, " in found("smooth_policy", self.jump((0.0, 0.05), Kind.UPPER)).evidence

    def test_needs_a_policy_and_neighbours(self):
        assert found("smooth_policy").evidence == "not measured"
        alone = measure("policy_jump", 0.1, parts={"multiple": [5], "headline": 5}, caveat="one episode")
        condition = found("smooth_policy", alone)
        assert (condition.status, condition.evidence) == (NOT_SHOWN, "one episode")


class TestStableDynamics:
    def growth(self, interval):
        factor = {"all": {"value": 3.0, "interval": interval}, "other": {"value": 9.0, "interval": [9.0, 9.0]}}
        return measure("replay_growth", 0.1, parts={"group": "all", "factor": factor}, caveat="nothing to see")

    @pytest.mark.parametrize(
        ("interval", "status"),
        [
            ([1.0, 4.0], HOLDS),
            ([1.0, 4.01], NOT_SHOWN),
            ([4.0, 5.0], NOT_SHOWN),
            ([4.01, 5.0], FAILS),
            (None, NOT_SHOWN),
        ],
    )
    def test_is_decided_by_the_factor_of_the_worst_group(self, interval, status):
        assert found("stable_dynamics", self.growth(interval)).status is status

    def test_replays_that_failed_leave_it_open(self):
        factor = {"all": {"value": 1.0, "interval": [0.9, 1.1]}}
        growth = measure("replay_growth", 0.0, n=9, failed=3, parts={"group": "all", "factor": factor})
        condition = found("stable_dynamics", growth)
        assert (condition.status, condition.needs) == (NOT_SHOWN, "a replay that does not fail")

    def test_needs_a_replay_that_deviates(self):
        assert found("stable_dynamics").evidence == "not measured"
        assert found("stable_dynamics", measure("replay_growth", None, caveat="no deviation")).status is NOT_SHOWN


class TestReplayOutcome:
    def score(self, value, interval, exact=1.0, episodes=25, failed=0):
        parts = {"exact": {"mean": exact}}
        return measure("replay_score", value, interval=interval, n=episodes, failed=failed, parts=parts)

    @pytest.mark.parametrize(
        ("value", "interval", "status"),
        [
            (0.0, (-0.1, 0.1), HOLDS),
            (0.1, (-0.1, 0.3), HOLDS),
            (0.101, (0.1, 0.3), NOT_SHOWN),
            (0.2, (0.101, 0.3), FAILS),
            (0.0, None, NOT_SHOWN),
        ],
    )
    def test_fails_where_the_loss_is_surely_too_large(self, value, interval, status):
        assert found("replay_outcome", self.score(value, interval)).status is status

    def test_is_measured_by_what_the_recorded_actions_score(self):
        assert found("replay_outcome", self.score(0.05, (0.0, 0.07), exact=0.4)).status is NOT_SHOWN
        assert found("replay_outcome", self.score(0.08, (0.08, 0.08), exact=0.08)).status is FAILS

    def test_a_replay_that_does_not_reproduce_the_recording_shows_nothing(self):
        condition = found("replay_outcome", self.score(0.0, (0.0, 0.1), exact=0.0))
        assert condition.status is NOT_SHOWN
        assert "does not reproduce" in condition.evidence

    def test_few_episodes_and_failed_ones_do_not_hold(self):
        assert found("replay_outcome", self.score(0.0, (0.0, 0.9), episodes=1)).status is NOT_SHOWN
        assert found("replay_outcome", self.score(0.0, (0.0, 0.2), episodes=23, failed=2)).status is HOLDS
        assert found("replay_outcome", self.score(0.0, (0.0, 0.2), episodes=20, failed=5)).status is NOT_SHOWN

    def test_needs_a_score(self):
        assert found("replay_outcome").evidence == "not measured"
        assert found("replay_outcome", measure("replay_score", None, caveat="no score")).evidence == "no score"


class TestBlindness:
    """Where ten mean errors reach across the range, nothing can be far, and so nothing is shown."""

    def blind(self, mean):
        return [measure("error_mean", mean, interval=(mean, mean))]

    @pytest.mark.parametrize("name", ["rare_errors", "bounded_error", "smooth_tokenizer", "no_silent_failure"])
    def test_a_huge_mean_error_shows_nothing(self, name):
        assert found(name).status is HOLDS
        condition = found(name, *self.blind(5.0))
        assert condition.status is NOT_SHOWN
        assert "smaller error" in condition.needs


class TestCoarseness:
    def test_jumps_that_the_error_hides_from_the_alarm_are_not_called_smooth(self):
        """Far is beyond 5 here, and it jumps by 4: seven mean errors, which no cell of its own size explains."""
        coarse = measure("error_mean", 0.5, interval=(0.4, 0.6))
        for jump, status in ((4.0, NOT_SHOWN), (1.0, HOLDS), (0.1, HOLDS)):
            condition = found("smooth_tokenizer", coarse, excess(jump), dims=26)
            assert condition.status is status
            assert bool(condition.needs) == (status is NOT_SHOWN)


class TestTime:
    """What a time budget left out is what a condition needs, and only where it waits for that."""

    def late(self, *changed, stages=("states", "dynamics", "policy", "replay")):
        measures = {**good(), **{m.name: m for m in changed}}
        decided = decide(measures, fingerprints=3, seen={}, action_dim=DIMS, late=stages)
        return {c.name: c for c in decided}

    def test_needs_are_more_time(self):
        for name in ("smooth_pairs", "small_gain", "smooth_policy", "stable_dynamics", "replay_outcome"):
            condition = self.late()[name]
            assert (condition.needs, "time budget" in condition.evidence) == ("more time", True)
        assert self.late(stages=())["smooth_policy"].needs == "a policy, in Python: policy="

    def test_the_flag_waits_for_states_only_where_the_alarm_is_on(self):
        condition = self.late(*alarm(True).values())["no_silent_failure"]
        assert (condition.status, condition.needs) == (NOT_SHOWN, "more time")
        assert "jump alarm on" in condition.evidence
        assert self.late()["no_silent_failure"].status is HOLDS
        few = self.late(*alarm(None).values())["no_silent_failure"]
        assert few.needs == f"{LEAST_EPISODES} held-out episodes"
        assert self.late(*alarm(True).values(), stages=())["no_silent_failure"].needs == "states"


class TestFrequentValues:
    def test_a_frequent_value_that_comes_back_as_another_fails_whatever_the_mean(self):
        lost = {"dim": 2, "value": 0.0, "decoded": 1.0, "error": 1.0, "share": 0.03, "kept": 0.0}
        condition = found("values_reproduced", measure("hold_bias", 0.01, parts={"unreproducible": [lost]}))
        assert condition.status is FAILS
        assert "dim 2 holds 0" in condition.evidence
        near = {**lost, "error": 0.05}
        assert found("values_reproduced", measure("hold_bias", 0.01, parts={"unreproducible": [near]})).status is HOLDS


def conditions_of(**status):
    return tuple(Condition(name, ".", found, "", "") for name, found in status.items())


class TestAdvice:
    def test_is_of_what_fails_most_urgent_first(self):
        told = advise(conditions_of(mean_error=FAILS, smooth_tokenizer=HOLDS, no_silent_failure=FAILS, held_out=FAILS))
        assert told == (ADVICE["held_out"], ADVICE["no_silent_failure"], ADVICE["mean_error"])

    def test_nothing_fails_nothing_to_do(self):
        assert advise(conditions_of(mean_error=HOLDS, smooth_pairs=NOT_SHOWN)) == ()

    def test_every_condition_that_can_fail_has_one(self):
        never = {"small_gain"}  # sufficient only
        assert set(ADVICE) == set(ORDER) - never
