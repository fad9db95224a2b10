"""What trainings share: the schedule, batches drawn alike, scales of what does not move."""

import pytest
import torch

from action_tokenizers import ActionValueError
from action_tokenizers.cloning.trainer import Trainer, check_sizes, check_training, scale_of


def test_the_rate_rises_then_falls_to_nothing():
    layer = torch.nn.Linear(2, 1)
    trainer = Trainer(layer, 100, 0.5, seed=0)
    rates = []
    for _ in range(100):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.step(layer(torch.ones(1, 2)).sum() ** 2)
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.5, rel=0.02)
    assert rates.index(max(rates)) == 4
    assert rates[-1] < 0.001


def test_batches_depend_on_the_seed_alone():
    one, again, other = (Trainer(torch.nn.Linear(1, 1), 1, 0.1, seed).rows(50, 20, "cpu") for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert 0 <= int(one.min()) <= int(one.max()) < 50


def test_a_loss_that_is_no_number_changes_nothing():
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    with pytest.raises(ActionValueError, match="finite loss, got nan"):
        Trainer(layer, 10, 0.1, 0).step(layer(torch.ones(1, 2)).sum() * torch.nan)
    assert torch.equal(layer.weight, before)


def test_scales():
    values = torch.tensor([[1.0, 0.6, 100.0], [3.0, 0.6, 100.00001], [5.0, 0.6, 100.0]])
    assert scale_of(values).tolist() == pytest.approx([(8 / 3) ** 0.5, 1, 1])


def test_numbers():
    check_sizes({"width": 0}, least={"width": 0})
    with pytest.raises(ActionValueError, match="width an integer >= 1, got 0"):
        check_sizes({"width": 0})
    with pytest.raises(ActionValueError, match="learning_rate"):
        check_training(1, 1, float("nan"))
