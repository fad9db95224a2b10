"""One position at a time gives the logits of all at once, and none sees what comes after it."""

import pytest
import torch

from action_tokenizers.cloning.network import TokenTransformer


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return TokenTransformer(vocab_size=11, max_tokens=6, state_dim=3, width=16, layers=2, heads=2).double()


@torch.no_grad()
def test_step_by_step_gives_the_logits_of_all_at_once(network):
    states, ids = torch.randn(4, 3, dtype=torch.float64), torch.randint(11, (4, 5))
    at_once = network(states, ids)
    assert at_once.shape == (4, 6, 11)
    last, caches = None, None
    for p in range(6):
        logits, caches = network.step(states, last, caches)
        torch.testing.assert_close(logits, at_once[:, p], rtol=0, atol=1e-12)
        last = ids[:, p] if p < 5 else None


@torch.no_grad()
def test_no_position_sees_what_comes_after(network):
    states, ids = torch.randn(1, 3, dtype=torch.float64), torch.randint(11, (1, 5))
    changed = ids.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 11
    before, after = network(states, ids), network(states, changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@torch.no_grad()
def test_every_position_sees_the_state(network):
    ids = torch.randint(11, (1, 5))
    one, other = (network(torch.full((1, 3), value, dtype=torch.float64), ids) for value in (0.0, 1.0))
    assert bool(((one - other).abs().amax(-1) > 1e-3).all())
