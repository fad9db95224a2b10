import math
import re

import numpy as np
import pytest

from action_tokenizers import ActionTokenizer, BinningTokenizer, KMeansTokenizer, Range
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.diagnostics.known import TOLERANCE, Trap, TrapTokenizer, binning_control
from action_tokenizers.errors import ActionShapeError, ActionTokenizerError, ActionValueError
from action_tokenizers.testing import check_tokenizer

# epsilon -> horizon; of the trap: mean error in distribution, regret per step deployed, share of the time in I_T1 and
# I_T2, regret per step of Algorithm 1; of bins of width 2 epsilon: error in distribution, regret deployed. Computed
# once elsewhere, with 32768 chains and an error of exactly -epsilon / 2 outside the intervals; the last row's bins by
# the limits epsilon and 1.25 / 2 epsilon
TABLE = {
    2.0**-5: (769, 0.17667, 0.60444, 0.9939, 0.11081, 0.03110, 0.01950),
    2.0**-6: (1107, 0.08852, 0.67343, 0.9949, 0.05556, 0.01557, 0.00975),
    2.0**-7: (1507, 0.04438, 0.70818, 0.9956, 0.02792, 0.00779, 0.00488),
    2.0**-12: (4428, 0.00148, 0.74271, 0.9974, 0.00100, 2.0**-12, 0.625 * 2.0**-12),
}
OTHERS = [{"a": 0.2, "b": 0.25, "k": 1.0, "d": 0.6}, {"a": 0.1, "b": 0.4, "k": 1.8, "d": 1.0}]


def within(percent: float, value: float) -> object:
    return pytest.approx(value, rel=percent / 100)


def by_the_book(epsilon: float, horizon: int, n: int = 1024) -> np.ndarray:
    """The regret of each step, written a second time from the theorem: float64, an error of -epsilon / 2 elsewhere."""
    a, b, k, d, slack = 0.2, 0.3, 2.0, 1.2, 1e-13
    x, regret = Trap().start(n), []
    for _ in range(horizon):
        u = np.arctan(x)
        q = u - epsilon / 2
        q[np.abs(x) <= k * epsilon / 2 + slack] = (d + 0.5) * epsilon / b
        q[(x >= d * epsilon - slack) & (x <= (d + 1) * epsilon + slack)] = 1
        far = (x >= a * d * epsilon + b - slack) & (x <= a * (d + 1) * epsilon + b + slack)
        q[far] = (d + 1) * (1 - a * a) * epsilon / b - a
        regret.append(np.abs(q - u).mean())
        x = a * x + b * q
    return np.array(regret)


# ---- the system -------------------------------------------------------------------------------------------------


def test_the_intervals_are_those_of_the_paper():
    plain = [(-0.01, 0.01, 0.017 / 0.3), (0.012, 0.022, 1), (0.3024, 0.3044, -0.1296)]
    noisy = [(-0.02, 0.02, 0.044 / 0.3), (0.04, 0.048, 1), (0.308, 0.3096, -0.272)]
    np.testing.assert_allclose(Trap(0.01).intervals, plain, rtol=1e-12)
    np.testing.assert_allclose(Trap(0.01, noisy=True).intervals, noisy, rtol=1e-12)


@pytest.mark.parametrize("epsilon", [2.0**-5, 2.0**-7, 2.0**-12])
@pytest.mark.parametrize("constants", [{}, {"noisy": True}, *OTHERS])
def test_one_step_from_anywhere_in_an_interval_ends_in_the_next(constants, epsilon):
    trap = Trap(epsilon, **constants)
    p, t1, t2 = trap.intervals
    for here, there in ((p, t1), (t1, t2), (t2, p if trap.noisy else t1)):
        x = np.linspace(here.low, here.high, 1001)
        after = trap.step(x, np.full_like(x, here.value))
        assert after.min() >= there.low - 1e-13
        assert after.max() <= there.high + 1e-13


@pytest.mark.parametrize("noisy", [False, True])
def test_the_trap_errs_by_less_than_epsilon_outside_its_intervals(noisy):
    trap = Trap(2**-7, noisy=noisy)
    tokenizer = trap.tokenizer(horizon=1)
    x = np.tan(np.linspace(-1.57, 1.57, 100_001))
    for low, high, value in trap.intervals:
        inside = np.arctan(np.linspace(low - TOLERANCE / 2, high + TOLERANCE / 2, 1001))
        np.testing.assert_allclose(tokenizer.quantize(inside[:, None, None]), value, rtol=0, atol=2e-7)
        x = x[(x < low - 2 * TOLERANCE) | (x > high + 2 * TOLERANCE)]
    u = np.arctan(x)
    error = tokenizer.quantize(u[:, None, None])[:, 0, 0] - u
    if noisy:
        assert np.abs(error).max() == within(1, trap.epsilon / 2)
    else:
        # always below the expert's action, as the theorem asks left of I_P
        assert error.min() == within(1, -trap.epsilon)
        assert error.max() <= 2e-7
        assert error.mean() == within(1, -trap.epsilon / 2)


def test_what_leaves_the_expert_alone_loses_nothing():
    fine = binning_control(2**-14)
    assert Trap().rollout(fine, 64, 50).regret.max() <= 2**-15 + 1e-7


def test_algorithm_1_executes_what_the_expert_would_have_done():
    """Its actions are those in the states of an expert that started where the robot did, wherever the robot is now."""
    trap, n = Trap(2**-6), 64
    plan = trap.rollout(trap.tokenizer(), n, 40, open_loop=True)
    x, seen = trap.start(n), trap.start(n)
    for h in range(40):
        u = trap.tokenizer().quantize(trap.expert(seen)[:, None, None])[:, 0, 0]
        assert plan.regret[h] == pytest.approx(np.abs(u - np.arctan(x)).mean(), abs=1e-7)
        x, seen = trap.step(x, u), trap.step(seen, trap.expert(seen))


def test_the_model_of_algorithm_1_has_noise_of_its_own():
    """An exact quantizer in noise: robot and model part as two paths of x' = a x + noise do."""
    trap = Trap(2**-4, noisy=True)
    regret = trap.rollout(binning_control(2**-14), 1000, 60, open_loop=True).regret[20:]
    apart = math.sqrt(2 / math.pi) * trap.sigma * math.sqrt(2 / (1 - trap.a**2))
    assert regret.mean() == within(3, apart)


def test_demonstrations_are_the_experts():
    trap = Trap(2**-6)
    episodes = trap.demonstrations(30, seed=3, horizon=40)
    states, actions = np.stack(episodes.states), np.stack(episodes.actions)
    assert states.shape == actions.shape == (30, 40, 1)
    assert np.abs(states[:, 0].mean()) < 0.6
    assert 0.6 < states[:, 0].std() < 1.4
    np.testing.assert_allclose(actions, np.arctan(states), atol=1e-6)
    np.testing.assert_allclose(states[:, 1:], trap.step(states, actions)[:, :-1], atol=1e-6)
    again = np.stack(trap.demonstrations(30, seed=3, horizon=40).actions)
    assert np.array_equal(again, actions)
    assert not np.array_equal(np.stack(trap.demonstrations(30, seed=4, horizon=40).actions), actions)
    assert trap.demonstrations(2).lengths == (1107, 1107)


def test_demonstrations_without_a_seed_start_at_equal_masses():
    first = np.stack(Trap().demonstrations(1000, seed=None, horizon=1).states)[:, 0, 0]
    np.testing.assert_allclose(first, -first[::-1], atol=1e-6)
    assert first.std() == within(1, 1)
    assert (first < 1).mean() == pytest.approx(0.841, abs=1e-3)


def test_the_noise_is_seeded_and_as_large_as_it_says():
    trap = Trap(2**-6, noisy=True)
    assert trap.sigma == pytest.approx(2**-6 / (6 * math.log(2)))
    states = np.stack(trap.demonstrations(50, horizon=200).states)[..., 0].astype(np.float64)
    noise = states[:, 1:] - trap.step(states, np.arctan(states))[:, :-1]
    assert noise.std() == within(2, trap.sigma)
    tokenizer = trap.tokenizer()
    one, same, other = (trap.rollout(tokenizer, 32, 60, seed=seed).regret for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert Trap().sigma == 0


# ---- the theorem, deterministic ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "epsilon", [2.0**-5, *(pytest.param(e, marks=pytest.mark.slow) for e in (2.0**-6, 2.0**-7, 2.0**-12))]
)
def test_the_trap_deploys_badly_whatever_its_error(epsilon):
    horizon, error, deployed, occupied, augmented, bins_error, bins_deployed = TABLE[epsilon]
    trap, bins = Trap(epsilon), binning_control(2 * epsilon)
    tokenizer = trap.tokenizer()
    assert trap.horizon == horizon
    assert trap.in_distribution(tokenizer).mean() == within(2, error)
    rollout = trap.rollout(tokenizer)
    assert rollout.regret.mean() == within(2, deployed)
    assert rollout.occupancy[:, 1:].sum(1).mean() == within(0.5, occupied)
    plan = trap.rollout(tokenizer, open_loop=True).regret.mean()
    assert plan == within(2, augmented)
    # equation of Theorem 7 with the constants of these dynamics
    assert plan <= (1 + trap.b / (1 - trap.a)) * trap.in_distribution(tokenizer).mean()
    assert trap.in_distribution(bins).mean() == within(2, bins_error)
    assert trap.rollout(bins).regret.mean() == within(2, bins_deployed)


def test_the_tokenizer_loses_what_the_theorem_s_quantizer_loses():
    """Cells and float32, or an error of -epsilon / 2 everywhere in float64: only the way into the loop differs."""
    trap = Trap(2**-7)
    difference = (trap.rollout(trap.tokenizer(), 512, 300).regret - by_the_book(2**-7, 300, 512)).cumsum()
    late = difference[100:].reshape(-1, 2).mean(1)  # over I_T1 and I_T2, between which a chain alternates
    assert np.ptp(late) < 1e-3
    assert abs(late[-1]) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [2.0**-5, 2.0**-6, 2.0**-7])
def test_the_theorem_s_quantizer_gives_the_table_to_its_last_digit(epsilon):
    assert by_the_book(epsilon, TABLE[epsilon][0], 32768).mean() == pytest.approx(TABLE[epsilon][2], abs=6e-6)


def test_limits_of_error_and_regret():
    trap = Trap(2**-12)
    tokenizer = trap.tokenizer()
    error = trap.in_distribution(tokenizer, 64, 100)[-1]
    assert error / trap.epsilon == within(0.1, 1.7 / 0.3)
    late = trap.rollout(tokenizer, 256, 300).regret[-100:].mean()
    assert late == within(0.5, (1 + 0.2 + math.atan(0.3)) / 2)
    assert late == within(0.5, 0.7457)


def test_the_smallest_epsilon_still_traps():
    trap = Trap(2**-16)
    late = trap.rollout(trap.tokenizer(), 128, 300).regret[-100:].mean()
    assert late == within(0.5, 0.7457)


@pytest.mark.slow
def test_slopes_in_epsilon():
    powers, rows = np.arange(5, 13), []
    for power in powers:
        trap = Trap(2.0**-power)
        tokenizer = trap.tokenizer()
        runs = trap.rollout(tokenizer, 512), trap.rollout(tokenizer, 512, open_loop=True)
        rows.append([trap.in_distribution(tokenizer).mean(), *(run.regret.mean() for run in runs)])
    slopes = np.polyfit(-powers, np.log2(rows), 1)[0]
    assert slopes == pytest.approx([0.987, -0.035, 0.974], abs=0.003)


def test_regret_is_linear_in_the_horizon():
    trap, horizons = Trap(2**-8), np.array([16, 32, 64, 128, 256, 512])
    regret = trap.rollout(trap.tokenizer(), 1024, 512).regret.cumsum()[horizons - 1]
    slope, first = np.polyfit(horizons, regret, 1)
    assert slope == within(0.1, 0.7285)
    assert first == pytest.approx(-5.44, abs=0.3)  # the way into the loop, on which the cells' errors are not equal
    exact = by_the_book(2**-8, 512).cumsum()[horizons - 1]
    assert np.polyfit(horizons, exact, 1) == pytest.approx([0.7285, -5.44], abs=0.01)
    assert np.polyfit(np.log(horizons), np.log(regret), 1)[0] == pytest.approx(1.16, abs=0.01)
    bounds = [lower_bound(trap, horizon) for horizon in horizons]
    assert bounds == pytest.approx([0.0382, 0.0691, 0.0845, 0.0923, 0.0961, 0.0981], abs=1e-4)
    assert (regret / horizons > bounds).all()


def lower_bound(trap: Trap, horizon: int) -> float:
    """The regret per step that the proof promises: the mass of starts from which the loop has been entered."""
    a, b, pull = trap.a, trap.b, trap.a + trap.b
    radii = [(trap.k / 2 - b / (1 - pull) * (1 - pull**t)) / pull**t for t in range(horizon - 1)]
    trapped = [math.erf(radius * trap.epsilon / math.sqrt(2)) / 2 for radius in radii]
    return a * sum(trapped) / horizon


# ---- the numbers that an audit must see through -----------------------------------------------------------------


@pytest.fixture(scope="module")
def actions():
    return np.stack(Trap(2**-7).demonstrations(512).actions)


FITTED = {
    "trap": lambda chunks: Trap(2**-7).tokenizer(),
    "bins": lambda chunks: binning_control(2**-6),
    "wide bins": lambda chunks: binning_control(0.178),
    "k-means": lambda chunks: KMeansTokenizer(codebook_size=64, range="minmax", horizon=1).fit(chunks),
    "quantile": lambda chunks: BinningTokenizer(bins=64, strategy="quantile", range="minmax", horizon=1).fit(chunks),
}


@pytest.mark.parametrize(
    ("name", "mean", "quantile", "deployed"),
    [
        ("trap", 0.0444, 0.0460, 0.704),
        ("bins", 0.0078, 0.0078, 0.0049),
        ("wide bins", 0.0888, 0.0890, 0.0555),
    ],
)
def test_step_level_errors_do_not_see_the_trap(name, mean, quantile, deployed, actions):
    """Mean and q99.9 rank the trap between bins of two widths; deployed it is ten times worse than the worst."""
    chunks = actions.reshape(-1, 1, 1)
    tokenizer = FITTED[name](chunks)
    error = np.abs(tokenizer.quantize(chunks) - chunks)
    assert error.mean() == within(2, mean)
    assert np.quantile(error, 0.999) == within(2, quantile)
    assert Trap(2**-7).rollout(tokenizer, 512, 600).regret.mean() == within(2, deployed)


@pytest.mark.parametrize("name", ["k-means", "quantile"])
def test_learned_codebooks_deploy_well(name, actions):
    chunks = actions.reshape(-1, 1, 1)
    tokenizer = FITTED[name](chunks)
    error = np.abs(tokenizer.quantize(chunks) - chunks)
    assert error.mean() <= 1e-3
    assert np.quantile(error, 0.999) <= 0.264
    assert error.max() > 0.1  # a large error somewhere is no trap
    assert Trap(2**-7).rollout(tokenizer, 512, 600).regret.mean() <= 0.005


def test_two_in_five_demonstrations_hold_a_large_error(actions):
    flat = actions.reshape(-1, 1, 1)
    error = np.abs(Trap(2**-7).tokenizer().quantize(flat) - flat).reshape(len(actions), -1)
    assert (error.max(1) > 0.5).mean() == pytest.approx(0.431, abs=0.06)  # 0.022 is the spread at 512 episodes
    assert (error > 0.5).mean() < 1e-3


# ---- the theorem, with noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "power", [4, 6, *(pytest.param(power, marks=pytest.mark.slow) for power in (5, 7, 8, 9, 10, 11, 12))]
)
def test_with_noise_the_loss_is_a_constant_over_the_logarithm(power):
    trap = Trap(2.0**-power, noisy=True)
    n = 512 if power < 8 else 1024
    tokenizer = trap.tokenizer()
    rollout = trap.rollout(tokenizer, n)
    assert 0.9 < rollout.regret.mean() * abs(math.log(trap.epsilon)) < 1.5
    assert (rollout.occupancy[trap.horizon // 2 :].mean(0) > 0.02).all()  # it comes back to all three for ever
    error = trap.in_distribution(tokenizer, n) / trap.epsilon
    assert error[-50:].mean() == within(1, 2.2 * 2 / 0.3)
    assert error.mean() == within(2, 2.2 * 2 / 0.3)


def test_with_noise_bins_lose_what_their_width_says():
    losses = []
    for power in (4, 6, 8):
        trap = Trap(2.0**-power, noisy=True)
        losses.append(trap.rollout(binning_control(2 * trap.epsilon), 512, 150).regret.mean())
    assert np.polyfit([-4, -6, -8], np.log2(losses), 1)[0] == pytest.approx(1, abs=0.05)


# ---- the tokenizer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{"noisy": True}, {"epsilon": 2.0**-5, "horizon": 6, **OTHERS[0]}])
def test_contract(params):
    check_tokenizer(TrapTokenizer(**params), smooth_chunks(60, 6, 1, gripper=False))


def test_its_ids_are_its_cells(tmp_path):
    """One per cell; a folder gives back the cells of the theorem, and with them the trap."""
    trap = Trap(2**-7, noisy=True)
    tokenizer = trap.tokenizer(horizon=1)
    edges, actions = trap.cells()
    assert tokenizer.vocab_size == len(actions) == len(edges) + 1
    assert trap.tokenizer().vocab_size == len(actions) + 1  # a pad, as chunks may be of any length
    loaded = ActionTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "trap"))
    assert isinstance(loaded, TrapTokenizer)
    assert loaded.trap == trap
    np.testing.assert_allclose(loaded.decode(np.arange(len(actions))[:, None])[:, 0, 0], actions, atol=1e-6)
    cells = loaded.scalar_cells()
    np.testing.assert_allclose(cells.edges[0], edges / (math.pi / 2), atol=1e-6)
    np.testing.assert_allclose(cells.centres[0], actions / (math.pi / 2), atol=1e-6)


def test_the_number_of_cells():
    """2 * 201 grid points and one at 0; I_P holds three, I_T1 one, I_T2 none; two borders of each."""
    edges, _ = Trap(2**-7).cells()
    assert len(edges) == 2 * 201 + 1 - 3 - 1 + 6


def test_the_card_decodes_without_the_library(tmp_path, monkeypatch):
    tokenizer = Trap(2**-7).tokenizer(horizon=5)
    folder = tokenizer.save_pretrained(tmp_path / "trap")
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[-1]
    assert "action_tokenizers" not in code
    ids = tokenizer.encode(np.array([[-1.5], [0.0], [0.01], [0.3], [1.0]]))
    monkeypatch.chdir(folder)
    names = {"ids": ids}
    exec(code, names)
    np.testing.assert_allclose(names["actions"], tokenizer.decode(ids), atol=1e-6)


def test_the_data_of_its_fit_do_not_matter():
    other = TrapTokenizer(epsilon=2**-6, horizon=4).fit(smooth_chunks(20, 4, 1, gripper=False))
    mine = Trap(2**-6).tokenizer(horizon=4)
    chunks = np.random.default_rng(0).uniform(-1.5, 1.5, (50, 4, 1))
    assert np.array_equal(other.encode(chunks), mine.encode(chunks))


def test_a_range_of_ones_own_clips_and_moves_nothing(tmp_path):
    narrow = TrapTokenizer(range=Range([-0.5], [0.75]), horizon=1).fit(np.zeros((1, 1, 1)))
    loaded = ActionTokenizer.from_pretrained(narrow.save_pretrained(tmp_path / "trap"))
    u = np.linspace(-0.45, 0.7, 500)[:, None, None]
    expected = Trap().tokenizer(horizon=1).quantize(u).clip(-0.5, 0.75)
    np.testing.assert_allclose(loaded.quantize(u), expected, atol=1e-6)
    assert loaded.quantize(np.array([[2.0]])) == pytest.approx(0.75, abs=2**-7)


def test_the_control_is_bins_of_the_width_asked():
    cells = binning_control(0.25).scalar_cells()
    assert len(cells.centres[0]) == 14  # 7 to each side reach 1.75, past pi/2
    edges = cells.edges[0] * 1.75
    np.testing.assert_allclose(np.diff(edges), 0.25, atol=1e-6)
    assert edges.abs().min() == 0
    assert binning_control(0.25, horizon=12).horizon == 12
    assert binning_control(0.25).horizon is None


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"k": 1.0, "d": 0.6}, r"k/2 > b / \(1 - a - b\)"),  # as printed in the paper
        ({"d": 1.0}, "d > k/2"),
        ({"k": 5.0, "d": 3.0}, "a k < 1"),
        ({"a": 0.8}, r"a \+ b < 1"),
        ({"a": 0.8, "b": 0.3, "noisy": True}, r"a \+ b < 1"),
        ({"k": 0.5, "noisy": True}, "k above what noise and errors carry"),
        ({"epsilon": 0.2}, "intervals are apart"),
        ({"epsilon": 0.1, "noisy": True}, "intervals are apart"),
        ({"epsilon": 0.0195, "a": 0.6, "b": 0.1, "k": 1.5, "d": 10.0}, "within pi/2"),
        ({"epsilon": 1.0}, "epsilon"),
        ({"epsilon": 2.0**-17}, "2\\*\\*-16"),
        ({"epsilon": 0.0}, "epsilon a finite number > 0"),
        ({"b": math.inf}, "b a finite number > 0"),
        ({"k": math.nan}, "k a finite number > 0"),
        ({"d": True}, "d a finite number > 0"),
        ({"a": "0.2"}, "a a finite number > 0"),
        ({"noisy": 1}, "noisy True or False"),
    ],
)
def test_wrong_constants_are_refused(constants, message):
    with pytest.raises(ActionValueError, match=message):
        Trap(**constants)
    with pytest.raises(ActionValueError, match=message):
        TrapTokenizer(**constants).fit(np.zeros((1, 1, 1)))


@pytest.mark.parametrize("noisy", [False, True])
def test_the_epsilons_that_the_message_promises(noisy):
    for epsilon in np.geomspace(2.0**-16, 0.06, 50):
        assert Trap(epsilon, noisy).epsilon == epsilon


@pytest.mark.parametrize(
    ("params", "shape", "error"),
    [
        ({}, (3, 2, 2), ActionShapeError),
        ({"range": "minmax"}, (3, 2, 1), ActionValueError),
        ({"range": Range([0.5], [0.5])}, (3, 2, 1), ActionValueError),
        ({"range": Range([[-1.0], [-1.0]], [[1.0], [1.0]], ["default", "b"])}, (3, 2, 1), ActionValueError),
    ],
)
def test_a_fit_that_has_no_trap_is_refused(params, shape, error):
    with pytest.raises(error, match="expected"):
        TrapTokenizer(**params).fit(np.random.default_rng(0).normal(size=shape))


@pytest.mark.parametrize("width", [0.0, -0.1, math.nan, math.inf])
def test_a_control_without_a_width_is_refused(width):
    with pytest.raises(ActionValueError, match="width"):
        binning_control(width)


def test_a_tokenizer_of_longer_chunks_cannot_be_rolled_out():
    trap = Trap()
    for call in (trap.rollout, trap.in_distribution):
        with pytest.raises(ActionTokenizerError, match="horizon"):
            call(trap.tokenizer(horizon=4), 8, 10)
