import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from action_tokenizers import (
    ActionShapeError,
    ActionValueError,
    BinningTokenizer,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    NotFittedError,
    Relative,
    ResidualVQTokenizer,
)
from action_tokenizers.data import ChunkSample, smooth_episodes
from action_tokenizers.diagnostics import bounds
from action_tokenizers.diagnostics import report as report_module
from action_tokenizers.diagnostics.audit import ALWAYS, STAGES, audit
from action_tokenizers.diagnostics.execution import Outcome
from action_tokenizers.diagnostics.known import Trap, binning_control
from action_tokenizers.diagnostics.report import Status
from tests.fakes.relative import differences, drifting, pair_of_bins, turned

QUICK = ("error", "smoothness", "codebook")


@pytest.fixture(scope="module")
def split():
    """Smooth motion with states (the action of the step before), 12 episodes to fit and 12 to audit."""
    episodes = smooth_episodes(24, length=(60, 90), action_dim=2, seed=1)
    states = [np.concatenate([a[:1], a[:-1]]) for a in episodes.actions]
    return dataclasses.replace(episodes, states=states).split(0.5, seed=0)


@pytest.fixture(scope="module")
def tokenizer(split):
    return BinningTokenizer(horizon=8, bins=64).fit(split[0])


def test_everything_is_measured_and_what_needs_no_more_is_decided(split, tokenizer):
    report = audit(tokenizer, split[1])
    names = [m.name for m in report.measures]
    assert len(names) == len(set(names)) > 40
    open_ones = {c.name for c in report.conditions if c.status is Status.NOT_SHOWN}
    assert open_ones <= {"small_gain", "smooth_policy", "stable_dynamics", "replay_outcome", "smooth_pairs"}
    assert {"smooth_policy", "stable_dynamics", "replay_outcome"} <= open_ones
    assert report.silent_failure is False
    assert all(c.needs for c in report.conditions if c.status is Status.NOT_SHOWN)


def test_equal_seeds_give_equal_reports(split, tokenizer):
    first, second = (audit(tokenizer, split[1], seed=3).to_json_text() for _ in range(2))
    assert first == second
    assert audit(tokenizer, split[1], seed=4, stages=QUICK).to_json_text() != first


def test_known_numbers_of_uniform_bins():
    random = np.random.default_rng(0)
    train, test = (Episodes([random.uniform(-1, 1, (40, 2)) for _ in range(12)]) for _ in range(2))
    tokenizer = BinningTokenizer(horizon=8, bins=32, range="minmax").fit(train)
    report = audit(tokenizer, test, unit=np.ptp(np.concatenate(train.actions), axis=0) / 2, stages=QUICK)
    width = 2 / 32
    # uniform data: the norm of two errors, each uniform within half a cell
    assert report.measure("error_mean").value == pytest.approx(width * 0.3826, rel=0.05)
    assert report.measure("excess_jump").value == pytest.approx(width * np.sqrt(2), rel=1e-3)
    assert report.measure("error_sup").value == pytest.approx(width / 2 * np.sqrt(2), rel=1e-3)
    assert report.measure("tokens").value == 16
    assert report.measure("bits").value == 16 * 5


def test_the_trap_fires_and_its_control_does_not():
    trap = Trap(2**-7)
    episodes = trap.demonstrations(100, seed=5)
    report = audit(trap.tokenizer(), episodes, horizon=1, stages=("error", "smoothness", "states"))
    assert report.silent_failure is True
    assert report.verdict.startswith("Silent failure risk")
    assert {"smooth_tokenizer", "no_silent_failure"} <= {c.name for c in report.failing}
    assert any("Replay" in text for text in report.advice)
    control = audit(binning_control(2**-6), episodes, horizon=1, stages=("error", "smoothness", "states"))
    assert control.silent_failure is False


def test_without_states_an_alarm_stays_open():
    trap = Trap(2**-7)
    episodes = trap.demonstrations(20, seed=5)
    report = audit(trap.tokenizer(), episodes, horizon=1, states=False, stages=QUICK)
    assert report.silent_failure is None
    flag = report.condition("no_silent_failure")
    assert (flag.status, flag.needs) == (Status.NOT_SHOWN, "states")
    assert report.condition("smooth_tokenizer").status is Status.FAILS


def test_fewer_than_ten_episodes_show_no_alarm():
    trap = Trap(2**-7)
    report = audit(trap.tokenizer(), trap.demonstrations(9, seed=5), horizon=1, stages=QUICK)
    assert report.silent_failure is None
    assert report.condition("smooth_tokenizer").status is Status.NOT_SHOWN
    assert any("only 9" in note for note in report.notes)


def test_one_episode_gives_no_interval_and_says_so(split, tokenizer):
    report = audit(tokenizer, split[1][[0]])
    found = report.measure("error_mean")
    assert found.value is not None
    assert found.interval is None
    assert "episode" in found.caveat
    assert report.condition("mean_error").status is Status.NOT_SHOWN


def test_data_of_the_fit_are_recognised_and_said_loudly(split, tokenizer):
    train, _ = split
    renamed = Episodes(train.actions[:3], source="innocent", fps=20)
    report = audit(tokenizer, renamed, stages=QUICK)
    assert report.condition("held_out").status is Status.FAILS
    assert report.notes[0].startswith("NOT HELD OUT")
    assert "held out" in report.verdict
    assert report.advice[0].startswith("Keep episodes from the fit")


def test_a_tokenizer_that_tells_nothing_of_its_fit_is_not_called_held_out(split):
    report = audit(binning_control(0.1), Trap().demonstrations(12, seed=0, horizon=50), horizon=1, stages=QUICK)
    assert report.condition("held_out").status is Status.NOT_SHOWN


@pytest.mark.parametrize("make", [KMeansTokenizer, ResidualVQTokenizer, FASTTokenizer])
def test_every_family(split, make):
    params = {} if make is FASTTokenizer else {"codebook_size": 32}
    report = audit(make(horizon=8, **params).fit(split[0]), split[1], stages=(*QUICK, "bounds"))
    assert report.silent_failure is False
    assert report.condition("held_out").status is Status.HOLDS
    json.loads(report.to_json_text())


def test_relative_actions_are_audited_as_they_are_executed(split):
    train, test = split
    sample = ChunkSample(horizon=8).add(train, 8, 1, Relative("previous"))
    report = audit(BinningTokenizer(horizon=8).fit(sample), test, stages=QUICK)
    assert any("codes relative actions" in note for note in report.notes)
    assert "what counts as far in any condition in half spans of the relative ones" in report.notes[-1]
    for name in ("excess_jump", "modulus"):
        assert "of that range, the relative actions that it codes span " in report.measure(name).caveat
    schema = json.loads((Path(report_module.__file__).parent / "audit.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(report.to_json_text()), schema)
    # deltas add up: what is executed drifts far more than the error of a delta
    assert report.measure("drift").value > 2 * report.measure("error_mean").value / np.sqrt(16)
    assert report.examples[0]["recorded"] == pytest.approx(
        test.actions[test.names.index(report.examples[0]["episode"])][:, int(report.examples[0]["dim"])].tolist(),
        abs=1e-5,
    )


@pytest.mark.parametrize("is_trap", [False, True])
def test_relative_actions_of_single_steps_are_judged_as_if_recorded_as_differences(is_trap):
    """They span a twentieth of the absolute ones, in whose range no error of theirs could be far."""
    train, test = drifting(0), drifting(1, n=24)
    made = [turned(tokenizer) if is_trap else tokenizer for tokenizer in pair_of_bins(train)]
    stages = ("error", "smoothness", "states", "bounds")
    one, other = (audit(t, data, stages=stages) for t, data in zip(made, (test, differences(test)), strict=True))
    far = ("rare_errors", "bounded_error", "smooth_tokenizer", "no_silent_failure", "smooth_pairs")
    for name in far:
        assert one.condition(name).status is other.condition(name).status, name
    failing = {name for name in far if one.condition(name).status is Status.FAILS}
    assert failing == ({"rare_errors", "bounded_error", "smooth_tokenizer"} if is_trap else set())
    for name in ("excess_violation", "pair_violation", "tv_lower"):
        mine, theirs = one.measure(name), other.measure(name)
        assert mine.value == pytest.approx(theirs.value, abs=0.02), name
        assert "half spans of the relative actions" in mine.caveat
        assert "half spans" not in theirs.caveat
    assert one.measure("excess_violation").parts["scales"] == pytest.approx(
        other.measure("excess_violation").parts["scales"], rel=1e-2
    )
    mine, theirs = (bounds.Given.of({m.name: m for m in report.measures}) for report in (one, other))
    assert (mine.is_smooth, mine.is_deterministic) == (theirs.is_smooth, theirs.is_deterministic)
    assert mine.near == pytest.approx(theirs.near, rel=1e-2)


def test_an_open_horizon_is_given_or_taken_from_the_rate(split):
    train, test = split
    tokenizer = BinningTokenizer().fit(list(train.actions))
    assert audit(tokenizer, test, horizon=5, stages=QUICK).data["horizon"] == 5
    assert audit(tokenizer, test, stages=QUICK).data["horizon"] == round(test.fps)
    with pytest.raises(ActionShapeError, match="expected a horizon"):
        audit(tokenizer, Episodes(test.actions), stages=QUICK)


def test_a_simulator_decides_the_rest(split, tokenizer):
    _, test = split

    def replay(name, actions):
        """A leaky sum of actions, which forgets: exact actions reach the goal, and nearly so decoded ones."""
        state, course = np.zeros(2), []
        for action in actions:
            state = 0.5 * state + action
            course.append(state)
        return Outcome(np.array(course), 1.0)

    report = audit(tokenizer, test, replay=replay, stages=(*QUICK, "replay"))
    assert report.condition("replay_outcome").status is Status.HOLDS
    assert report.condition("stable_dynamics").status is Status.HOLDS
    deviation = report.measure("replay_deviation")
    assert 0 < deviation.value < 10 * report.measure("error_mean").value * float(np.max(report.data["unit"]))


def test_a_simulator_that_fails_on_an_episode_loses_that_one_only(split, tokenizer):
    _, test = split
    broken = test.names[2]

    def replay(name, actions):
        if name == broken:
            raise RuntimeError("the arm fell off")
        return Outcome(np.cumsum(actions, 0), 1.0)

    report = audit(tokenizer, test, replay=replay, stages=(*QUICK, "replay"))
    found = report.measure("replay_deviation")
    assert found.n["episodes"] == len(test) - 1
    assert "the arm fell off" in found.caveat


class Independent:
    """A policy that draws any bins whatever the state."""

    def __init__(self, bins, length, log_prob=None):
        self.bins, self.length, self.told = bins, length, log_prob

    def sample(self, states, *, seed):
        return np.random.default_rng(seed).integers(0, self.bins, (len(states), self.length))

    def log_prob(self, states, ids):
        return np.full(len(states), -self.length * np.log(self.bins)) if self.told is None else self.told(states, ids)


def test_a_policy_is_held_to_its_condition(split, tokenizer):
    report = audit(tokenizer, split[1], policy=Independent(64, 16), stages=("policy",))
    assert report.condition("smooth_policy").status is Status.HOLDS
    assert report.measure("policy_tv").value == pytest.approx(0, abs=1e-9)


def test_a_policy_that_breaks_its_protocol_is_refused_before_the_work(split, tokenizer):
    stages = []
    policy = Independent(64, 16, lambda states, ids: np.full(len(states), np.nan))
    with pytest.raises(ActionValueError, match="log-prob"):
        audit(tokenizer, split[1], policy=policy, progress=lambda *step: stages.append(step))
    assert [done for _, done, _ in stages] == [0]
    unnormalised = Independent(64, 16, lambda states, ids: np.full(len(states), -1.0))
    with pytest.raises(ActionValueError, match="expected"):
        audit(tokenizer, split[1], policy=unnormalised)
    with pytest.raises(ActionValueError, match="states beside a policy"):
        audit(tokenizer, split[1], states=False, policy=Independent(64, 16))


def test_states_that_do_not_fit_are_refused(split, tokenizer):
    _, test = split
    with pytest.raises(ActionShapeError, match=r"one .* per episode"):
        audit(tokenizer, test, states=test.states[:-1])
    with pytest.raises(ActionShapeError, match=r"one .* per episode"):
        audit(tokenizer, test, states=[s[:-1] for s in test.states])
    with pytest.raises(ActionShapeError, match="one width"):
        audit(tokenizer, test, states=[s[:, : 1 + i % 2] for i, s in enumerate(test.states)])
    broken = [s.copy() for s in test.states]
    broken[3][7, 1] = np.nan
    with pytest.raises(ActionValueError, match=f"episode {test.names[3]}, frame 7, dim 1"):
        audit(tokenizer, test, states=broken)


def test_padded_states_count_nowhere(split, tokenizer):
    """Not finite where nothing was recorded, at the end, the start and a whole episode: the same as any other value."""
    _, test = split
    pads = [np.arange(length) >= length - 5 for length in test.lengths]
    pads[1][:3] = True
    pads[2][:] = True
    padded = dataclasses.replace(test, action_is_pad=pads)
    given = [
        [np.where(mask[:, None], junk, s) for s, mask in zip(test.states, pads, strict=True)] for junk in (0.0, np.nan)
    ]
    stages = ("states", "dynamics")
    clean, spoiled = (audit(tokenizer, padded, states=states, stages=stages).to_json() for states in given)
    assert clean == spoiled
    given[1][1][3, 0] = np.inf
    with pytest.raises(ActionValueError, match=f"got inf in episode {test.names[1]}, frame 3, dim 0"):
        audit(tokenizer, padded, states=given[1])


def test_what_cannot_be_audited_is_refused(split, tokenizer):
    _, test = split
    with pytest.raises(NotFittedError):
        audit(BinningTokenizer(horizon=8), test)
    with pytest.raises(ActionShapeError, match="horizon 8"):
        audit(tokenizer, test, horizon=9)
    for horizon in (0, -1, 2.5, "4"):
        with pytest.raises(ActionValueError, match="horizon"):
            audit(tokenizer, test, horizon=horizon)
    with pytest.raises(ActionShapeError, match="at least the horizon"):
        audit(tokenizer, Episodes([a[:5] for a in test.actions]))
    for wrong, said in (
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"budget": -1}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"states": True}, "states"),
    ):
        with pytest.raises(ActionValueError, match=said):
            audit(tokenizer, test, **wrong)
    with pytest.raises(ActionValueError, match="expected Episodes"):
        audit(tokenizer, list(test.actions))
    with pytest.raises(ActionValueError, match="unit"):
        audit(tokenizer, test, unit=np.array([1.0, 0.0]))
    with pytest.raises(ActionValueError, match="stages among"):
        audit(tokenizer, test, stages=["eror"])
    with pytest.raises(ActionShapeError, match="action_dim"):
        audit(tokenizer, Episodes([np.zeros((20, 3))]))


def test_a_spent_budget_leaves_out_and_says_what(split, tokenizer):
    report = audit(tokenizer, split[1], budget=0)
    assert {m.name for m in report.measures} >= {"error_mean", "drift", "episode_jump", "excess_jump"}
    assert report.measure("probe_nll") is None
    assert any("time budget of 0 s" in note and "learnability" in note for note in report.notes)
    assert set(ALWAYS) < set(STAGES)


def test_progress_is_told(split, tokenizer):
    told = []
    audit(tokenizer, split[1], stages=QUICK, progress=lambda *step: told.append(step))
    assert told[0] == ("audit", 0, 4)
    assert told[-1] == ("audit", 4, 4)


def test_cost_is_linear_in_episodes_by_what_it_quantizes(split, tokenizer, monkeypatch):
    """Counted, not timed: chunks that pass through the tokenizer for twice as many episodes."""
    from action_tokenizers.diagnostics.subject import Subject

    counts = []
    quantize = Subject.quantize

    def counted(self, chunks, *given):
        counts.append(len(chunks))
        return quantize(self, chunks, *given)

    monkeypatch.setattr(Subject, "quantize", counted)
    used = []
    for many in (6, 12):
        counts.clear()
        audit(tokenizer, split[1][list(range(many))], stages=QUICK)
        used.append(sum(counts))
    assert used[1] < 2.5 * used[0]
