"""Replays: the protocol on made-up simulators, and that real ones give back what was recorded."""

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from action_tokenizers import ActionShapeError, ActionValueError, BinningTokenizer, Episodes, FormatError
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.stability import replay_measures
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import MissingExtraError
from action_tokenizers.integrations import simulators
from action_tokenizers.integrations.simulators import (
    MetaWorldReplay,
    MetaWorldTask,
    PushTReplay,
    record,
    recorded_starts,
)

DEMO = Path(simulators.__file__).parents[1] / "data" / "demo"
STEP = 0.02  # of the made-up arm, per action of 1


class Arm:
    """39 observations of a hand that moves as told; solved while it is near the goal."""

    def set_task(self, task):
        self.task = task

    def reset(self, seed=None):
        self.hand = np.array([0.1 * self.task, 0.0, 0.0])
        return self.observed(), {}

    def step(self, action):
        self.hand = self.hand + STEP * np.asarray(action, np.float64)[:3]
        solved = abs(self.hand[0] - 1) < 0.02
        return self.observed(), 0.0, False, False, {"success": float(solved)}

    def observed(self):
        observation = np.zeros(39)
        observation[:3], observation[4:7], observation[36:39] = self.hand, self.hand / 2, (1, 0, 0)
        observation[11:36] = 99  # the second object and the previous frame
        return observation


class Expert:
    """Pushes with 5, far outside [-1, 1], in x; never solves the task from beyond the goal."""

    def get_action(self, observation):
        observation[4] -= 0.05  # as the expert of door-open does
        return np.array([5.0, 0.0, 0.0, 0.5])


@pytest.fixture
def arm(monkeypatch):
    """A metaworld with one task; start k is k tenths of the way to the goal, and 20 lies beyond it."""
    metaworld, policies = ModuleType("metaworld"), ModuleType("metaworld.policies")

    def MT1(task, seed):
        assert seed == 0
        return SimpleNamespace(train_tasks=list(range(21)), train_classes={task: Arm})

    metaworld.MT1, policies.ENV_POLICY_MAP = MT1, {"push-v3": Expert}
    monkeypatch.setitem(sys.modules, "metaworld", metaworld)
    monkeypatch.setitem(sys.modules, "metaworld.policies", policies)


class TestProtocol:
    def test_what_is_executed_is_recorded(self, arm):
        task = MetaWorldTask("push-v3")
        found = task.demonstrate(3, 2)
        noise = np.random.default_rng([3, 2]).normal(0, 0.05, (len(found), 4))
        wanted = np.clip([1, 0, 0, 0.5] + noise * [1, 1, 1, 0], -1, 1)
        np.testing.assert_array_equal(found.actions, wanted.astype(np.float32))
        assert found.actions.dtype == found.states.dtype == np.float32
        assert found.states.shape == (len(found), 14)
        np.testing.assert_allclose(found.states[0], [0.3, 0, 0, 0, 0.15, *[0] * 6, 1, 0, 0], rtol=1e-6)

    def test_an_episode_ends_15_steps_after_its_first_success(self, arm):
        found = MetaWorldTask("push-v3").demonstrate(0, 0)
        assert np.argmax(found.successes) == len(found) - 16

    def test_a_failure_is_none_after_400_steps(self, arm, monkeypatch):
        task, steps = MetaWorldTask("push-v3"), []
        monkeypatch.setattr(task, "step", lambda action: steps.append(1) or (np.zeros(39), False))
        assert task.demonstrate(0, 0) is None
        assert len(steps) == 400

    def test_every_pair_of_start_and_seed_is_recorded(self, arm):
        episodes, starts = record("push-v3", [2, 20, 5], range(3))
        assert starts == {0: 2, 1: 2, 2: 2, 3: 5, 4: 5, 5: 5}  # the expert fails from start 20
        assert episodes.names == tuple(starts)
        assert (episodes.fps, episodes.action_names[-1], episodes.source) == (80, "gripper", "push-v3 starts 2-5")
        assert not np.array_equal(episodes.actions[0], episodes.actions[1])

    def test_one_per_start_takes_the_first_seed_that_succeeds(self, arm, monkeypatch):
        plain = MetaWorldTask.demonstrate
        monkeypatch.setattr(
            MetaWorldTask, "demonstrate", lambda self, start, seed: None if seed == 0 else plain(self, start, seed)
        )
        episodes, starts = record("push-v3", [2, 5], range(3), one_per_start=True)
        assert starts == {0: 2, 1: 5}
        np.testing.assert_array_equal(episodes.actions[1], plain(MetaWorldTask("push-v3"), 5, 1).actions)

    def test_progress_counts_starts(self, arm):
        told = []
        record("push-v3", [0, 1], [0], progress=lambda *args: told.append(args))
        assert told == [("record", 0, 2), ("record", 1, 2)]

    def test_no_success_at_all_is_refused(self, arm):
        with pytest.raises(ActionValueError, match=r"success of the expert of push-v3, got none from starts \[20\]"):
            record("push-v3", [20], [0])

    def test_what_does_not_exist_is_refused(self, arm):
        with pytest.raises(ActionValueError, match=r"task among \['push-v3'\], got 'fold-v3'"):
            MetaWorldTask("fold-v3")
        with pytest.raises(ActionValueError, match=r"start of push-v3 among 0..20, got 21"):
            record("push-v3", [21])


class TestMetaWorldReplay:
    def test_recorded_actions_lead_to_the_recorded_states(self, arm):
        episodes, starts = record("push-v3", [2, 5], [0])
        replay = MetaWorldReplay("push-v3", starts)
        for name in (1, 0):
            states, score = replay(name, episodes.actions[name])
            assert score == 1
            assert states["hand"].shape == states["object"].shape == (len(episodes.actions[name]) + 1, 3)
            np.testing.assert_array_equal(states["hand"][:-1].astype(np.float32), episodes.states[name][:, :3])
            np.testing.assert_array_equal(states["object"][:-1].astype(np.float32), episodes.states[name][:, 4:7])

    def test_success_at_any_step_counts(self, arm):
        replay = MetaWorldReplay("push-v3", {7: 9})
        through = np.tile(np.float32([1, 0, 0, 0]), (30, 1))
        assert replay(7, through).score == 1
        assert replay(7, -through).score == 0
        assert replay(7, through[:0]).states["hand"].tolist() == [[0.9, 0, 0]]

    def test_the_audit_can_use_it(self, arm):
        episodes, starts = record("push-v3", [2, 5, 7, 8], [0])
        subject = Subject.of(
            BinningTokenizer(bins=4, horizon=8).fit(episodes), episodes, 8, unit_of(list(episodes.actions))
        )
        deviation, score, *_ = replay_measures(subject, MetaWorldReplay("push-v3", starts))
        hand = np.abs(deviation.parts["per_episode"]["hand"])
        summed = [STEP * np.abs(np.cumsum(e * subject.unit, 0)[:, :3]) for e in subject.each(subject.error)]
        assert (hand >= [s.max() - 1e-6 for s in summed]).all()
        assert deviation.parts["failed"] == []
        assert score.n["episodes"] == 4

    def test_an_unknown_episode_or_width_is_refused(self, arm):
        replay = MetaWorldReplay("push-v3", {7: 9})
        with pytest.raises(ActionValueError, match=r"whose start is known, \[7\], got 8"):
            replay(8, np.zeros((3, 4), np.float32))
        with pytest.raises(ActionShapeError, match=r"Meta-World actions \(t, 4\), got shape \(3, 2\)"):
            replay(7, np.zeros((3, 2), np.float32))


class Field:
    """PushT's reset: the angle turns the block about a point 45 px off, then one step pushes it out of the agent."""

    resets = 0

    def __init__(self, obs_type):
        assert obs_type == "state"

    def reset(self, options):
        type(self).resets += 1
        x, y, block_x, block_y, angle = options["reset_to_state"]
        self.agent = np.array([x, y])
        self.block = np.array([block_x + 45 * math.sin(angle), block_y + 45 - 45 * math.cos(angle)])
        self.angle = angle % (2 * math.pi)
        self.push()
        return self.observed(), {}

    def push(self):
        apart = self.block - self.agent
        distance = np.linalg.norm(apart)
        if distance < 30:
            self.block = self.block + apart / distance * (30 - distance) * 0.3

    def step(self, action):
        self.agent = np.asarray(action, np.float64)
        self.push()
        coverage = 1 / (1 + np.linalg.norm(self.block - 256))
        return self.observed(), 0.0, False, False, {"coverage": coverage}

    def observed(self):
        return np.array([*self.agent, *self.block, self.angle])


@pytest.fixture
def field(monkeypatch):
    package, envs, pusht = (ModuleType(name) for name in ("gym_pusht", "gym_pusht.envs", "gym_pusht.envs.pusht"))
    pusht.PushTEnv = Field
    for module in (package, envs, pusht):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def push_episodes(draws):
    """Episodes that begin in what the made-up field shows for these draws."""
    env, actions, states = Field("state"), [], []
    rng = np.random.default_rng(0)
    for draw in draws:
        seen = [env.reset({"reset_to_state": draw})[0]]
        acted = rng.uniform(100, 400, (20, 2)).astype(np.float32)
        for action in acted:
            seen.append(env.step(action)[0])
        actions.append(acted)
        states.append(np.stack(seen[:-1]).astype(np.float32))
    return Episodes(actions, states=states, names=tuple(range(10, 10 + len(draws))), fps=10)


class TestPushTReplay:
    # the second block begins under the agent, and is pushed away before it is seen
    DRAWS = ((222, 97, 217, 292, 3.0), (300, 210, 303, 205, -0.4), (100, 100, 150, 350, -3.1))

    def test_what_the_simulator_drew_is_found(self, field):
        episodes = push_episodes(self.DRAWS)
        replay = PushTReplay(episodes)
        for name, actions, states in zip(episodes.names, episodes.actions, episodes.states, strict=True):
            outcome = replay(name, actions)
            assert outcome.states["agent"].shape == outcome.states["block"].shape == (21, 2)
            for group, columns in (("agent", slice(0, 2)), ("block", slice(2, 4))):
                recorded = states[:, columns] / 512
                np.testing.assert_allclose(outcome.states[group][:-1], recorded, atol=1e-7)
        # whole pixels, exactly, although the recording holds float32
        assert [draw[:4].tolist() for draw in replay._simulator._draws.values()] == [
            list(map(float, d[:4])) for d in self.DRAWS
        ]

    def test_a_start_between_pixels_stays_there(self, field):
        episodes = push_episodes([(222.25, 97.5, 217.5, 292.125, 3.0)])
        states, _ = PushTReplay(episodes)(10, episodes.actions[0])
        np.testing.assert_allclose(states["block"][0], episodes.states[0][0, 2:4] / 512, atol=1e-9)

    def test_the_draw_is_searched_once(self, field):
        episodes = push_episodes(self.DRAWS)
        replay = PushTReplay(episodes)
        first = replay(11, episodes.actions[1])
        Field.resets = 0
        again = replay(11, episodes.actions[1])
        assert Field.resets == 1
        np.testing.assert_array_equal(first.states["block"], again.states["block"])
        assert first.score == again.score

    def test_the_score_is_the_best_coverage(self, field):
        episodes = push_episodes(self.DRAWS)
        outcome = PushTReplay(episodes)(10, episodes.actions[0])
        away = np.linalg.norm(outcome.states["block"][1:] * 512 - 256, axis=1)
        assert outcome.score == pytest.approx(1 / (1 + away.min()), abs=1e-12)

    def test_a_state_nothing_can_begin_in_is_refused(self, field, monkeypatch):
        episodes = push_episodes(self.DRAWS)
        monkeypatch.setattr(Field, "observed", lambda self: np.zeros(5))
        with pytest.raises(ActionValueError, match=r"first state that PushT can begin in, got \[222.0, 97.0"):
            PushTReplay(episodes)(10, episodes.actions[0])

    def test_unusable_episodes_are_refused(self, field):
        episodes = push_episodes(self.DRAWS)
        with pytest.raises(ActionValueError, match="episodes with states, got none"):
            PushTReplay(Episodes(episodes.actions))
        with pytest.raises(ActionShapeError, match="got width 2; LeRobot's copy"):
            PushTReplay(Episodes(episodes.actions, states=episodes.actions))
        with pytest.raises(ActionValueError, match="from their first frame"):
            PushTReplay(Episodes(episodes.actions, states=episodes.states, offsets=(0, 3, 0)))
        with pytest.raises(ActionValueError, match=r"whose first state is known, \[10, 11, 12\], got 0"):
            PushTReplay(episodes)(0, episodes.actions[0])
        with pytest.raises(ActionShapeError, match=r"PushT actions \(t, 2\), got shape \(3,\)"):
            PushTReplay(episodes)(10, np.zeros(3, np.float32))


class TestMissingExtra:
    def test_meta_world(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "metaworld", None)
        for call in (lambda: MetaWorldReplay("push-v3", {}), lambda: record("push-v3", [0])):
            with pytest.raises(MissingExtraError, match=r"^metaworld is needed .*'action-tokenizers\[sim\]'$"):
                call()

    def test_pusht(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gym_pusht", None)
        with pytest.raises(MissingExtraError, match=r"^gym_pusht is needed .*'action-tokenizers\[sim\]'$"):
            PushTReplay(Episodes([np.zeros((3, 2))], states=[np.zeros((3, 5))]))


class TestRecordedStarts:
    def test_the_demonstrations_of_the_package_tell_theirs(self):
        pytest.importorskip("pyarrow", reason="the demonstrations are parquet files")
        starts = recorded_starts(DEMO, "peg-insert-side-v3")
        assert list(starts) == list(range(25, 50))
        assert len(set(starts.values())) == 25

    def test_other_folders_are_refused(self, tmp_path):
        pytest.importorskip("pyarrow", reason="the demonstrations are parquet files")
        for folder, task in ((tmp_path, "push-v3"), (DEMO, "push-v3")):
            with pytest.raises(FormatError, match=r"episodes of push-v3 in .*, got none; pass starts= yourself"):
                recorded_starts(folder, task)

    def test_a_folder_that_does_not_say_is_refused(self, tmp_path):
        pa = pytest.importorskip("pyarrow", reason="the demonstrations are parquet files")
        pq = pytest.importorskip("pyarrow.parquet")
        folder = tmp_path / "meta/episodes/chunk-000"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"episode_index": [0]}), folder / "file-000.parquet")
        with pytest.raises(FormatError, match="metaworld/start"):
            recorded_starts(tmp_path, "push-v3")


class TestRealSimulators:
    """Exact actions give back the recording: success 1 and a state error of 0."""

    @pytest.mark.parametrize("task", ["push-v3", "door-open-v3"])
    def test_meta_world(self, task):
        pytest.importorskip("metaworld", reason="needs the extra sim, which CI does not install")
        episodes, starts = record(task, range(25, 27), one_per_start=True)
        replay = MetaWorldReplay(task, starts)
        rng = np.random.default_rng(0)
        for name, actions, states in zip(episodes.names, episodes.actions, episodes.states, strict=True):
            replay(name, rng.uniform(-1, 1, actions.shape).astype(np.float32))  # leaves nothing behind
            outcome = replay(name, actions)
            assert outcome.score == 1
            np.testing.assert_array_equal(outcome.states["hand"][:-1].astype(np.float32), states[:, :3])
            np.testing.assert_array_equal(outcome.states["object"][:-1].astype(np.float32), states[:, 4:7])

    def test_pusht(self, shared_pusht):
        self.check_pusht(shared_pusht[[0, 50, 107, 122, 205]])

    @pytest.mark.slow
    def test_pusht_whole(self, shared_pusht):
        errors = self.check_pusht(shared_pusht)
        assert np.median(errors) < 3e-5  # what float32 holds of a pixel
        assert np.mean(np.array(errors) < 1e-3) > 0.98

    def check_pusht(self, episodes):
        replay, errors = PushTReplay(episodes), []
        for name, actions, states in zip(episodes.names, episodes.actions, episodes.states, strict=True):
            outcome = replay(name, actions)
            places = np.concatenate([outcome.states["agent"], outcome.states["block"]], 1)[:-1] * 512
            errors.append(np.abs(places - states[:, :4]).max())
            assert errors[-1] < 0.05  # px
        return errors


@pytest.fixture(scope="module")
def shared_pusht():
    pytest.importorskip("gym_pusht", reason="needs the extra sim, which CI does not install")
    pytest.importorskip("pyarrow", reason="the recorded data are parquet files")
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "pusht"
    if not folder.is_dir():
        pytest.skip("needs the recorded PushT demonstrations, which are not part of the repository")
    return Episodes.load(folder)
