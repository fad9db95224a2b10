"""Audits for the tests of what is made of them: each is taken once."""

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer
from action_tokenizers.data import smooth_episodes
from action_tokenizers.diagnostics.audit import audit
from action_tokenizers.diagnostics.execution import Outcome
from action_tokenizers.diagnostics.report import AuditReport

HORIZON = 4
HOSTILE = "<script>alert('name')</script>"
# action names that would be markup to HTML, to SVG, to Markdown or to matplotlib
NAMES = (HOSTILE, 'a"b&|$x_{$', "_gripper")


class Copying:
    """Repeats the state it is in, with probability `sure` in every dim of every step."""

    def __init__(self, tokenizer: BinningTokenizer, sure: float = 0.9) -> None:
        self.tokenizer, self.sure = tokenizer, sure
        self.sizes = np.array([len(c) for c in tokenizer.scalar_cells().centres] * HORIZON)

    def wanted(self, states: np.ndarray) -> np.ndarray:
        return self.tokenizer.encode(np.repeat(states[:, None].astype(np.float32), HORIZON, 1))

    def sample(self, states: np.ndarray, *, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        wanted = self.wanted(states)
        other = (wanted + random.integers(1, self.sizes, wanted.shape)) % self.sizes
        return np.where(random.random(wanted.shape) < self.sure, wanted, other)

    def log_prob(self, states: np.ndarray, ids: np.ndarray) -> np.ndarray:
        spread = np.log((1 - self.sure) / (self.sizes - 1))
        return np.where(self.wanted(states) == ids, np.log(self.sure), spread).sum(1)


def follow(name: int, actions: np.ndarray) -> Outcome:
    """A system that forgets: x' = x / 2 + u, and a score that asks where it ends."""
    x = np.zeros((len(actions) + 1, actions.shape[1]))
    for h, u in enumerate(actions):
        x[h + 1] = x[h] / 2 + u
    return Outcome(x, float(np.abs(x[-1]).max() < 3))


@pytest.fixture(scope="session")
def recorded() -> tuple[Episodes, Episodes]:
    """Episodes to fit on, and others to audit on, whose names of source and actions are hostile."""
    train, test = smooth_episodes(24, length=(20, 36), action_dim=3, seed=0).split(0.5)
    held_out = Episodes(
        test.actions, states=test.states, fps=test.fps, source="<b>some & data</b>|", action_names=NAMES
    )
    return train, held_out


@pytest.fixture(scope="session")
def full_report(recorded: tuple[Episodes, Episodes]) -> AuditReport:
    """An audit that was given everything there is."""
    train, test = recorded
    tokenizer = BinningTokenizer(horizon=HORIZON, bins=16).fit(train)
    return audit(tokenizer, test, policy=Copying(tokenizer), replay=follow)


@pytest.fixture(scope="session")
def fast_report(recorded: tuple[Episodes, Episodes]) -> AuditReport:
    """An audit of a tokenizer without cells, with states."""
    train, test = recorded
    return audit(FASTTokenizer(horizon=HORIZON, vocab_size=256).fit(train), test)


@pytest.fixture(scope="session")
def bare_report(recorded: tuple[Episodes, Episodes]) -> AuditReport:
    """An audit of three episodes that was given nothing and takes the least."""
    train, test = recorded
    tokenizer = BinningTokenizer(horizon=HORIZON, bins=16).fit(train)
    return audit(tokenizer, test[:3], states=False, stages=())


@pytest.fixture(scope="session")
def full_page(full_report: AuditReport) -> str:
    """The full audit as HTML: its plots take the time."""
    return full_report.to_html()
