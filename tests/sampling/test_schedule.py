from __future__ import annotations

import pytest
import torch

from llrag_cli.sampling.schedule import FlowMatchSchedule


def test_the_released_steps() -> None:
    schedule = FlowMatchSchedule(steps=[1000, 750, 500, 250], shift=5.0)
    torch.testing.assert_close(schedule.steps, torch.tensor([1000.0, 937.5, 833.33331, 625.0]))


@pytest.mark.parametrize("step", range(4))
def test_noising_then_predicting_gives_the_clean_latents_back(step: int) -> None:
    schedule = FlowMatchSchedule(steps=[1000, 750, 500, 250], shift=5.0)
    clean, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    timestep = schedule.steps[step]
    noisy = schedule.noised(clean, noise, timestep)
    torch.testing.assert_close(schedule.clean(noisy, noise - clean, timestep), clean, atol=1e-6, rtol=0)


def test_timestep_zero_is_the_last_entry_not_sigma_zero() -> None:
    schedule = FlowMatchSchedule(steps=[1000], shift=5.0)
    assert float(schedule.sigma(torch.tensor(0.0))) == pytest.approx(0.00498008, abs=1e-8)


def test_each_row_may_have_a_timestep_of_its_own() -> None:
    schedule = FlowMatchSchedule(steps=[1000, 750, 500, 250], shift=5.0)
    clean, noise, timesteps = torch.randn(2, 3, 4), torch.randn(2, 3, 4), schedule.steps[:2]
    noisy = schedule.noised(clean, noise, timesteps)
    back = schedule.clean(noisy, noise - clean, timesteps)
    assert noisy.shape == back.shape == clean.shape
    for row, timestep in enumerate(timesteps):
        assert torch.equal(noisy[row], schedule.noised(clean[row], noise[row], timestep))
        assert torch.equal(back[row], schedule.clean(noisy[row], noise[row] - clean[row], timestep))
