"""Conditional flow matching: the path, its loss, and the Euler sampler, against closed forms."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lfmri_runtime.sampler import euler, uniform_time_grid
from lfmri_trainer.flow import SMALLEST_REMAINDER, EulerStep, flow_matching_loss, interpolate, sample, velocity

predictions = pytest.mark.parametrize("prediction", ["x_1", "velocity"])

#: The target of the toy problem, N(MEAN, DEVIATION^2) for every voxel.
MEAN, DEVIATION = 0.6, 0.2


class Answer(nn.Module):
    """A network that ignores its input."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x_t: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return self.answer


class Gaussian(nn.Module):
    """The best network for x_0 ~ N(0, 1), x_1 ~ N(MEAN, DEVIATION^2), independent: E[x_1 | x_t] in closed form."""

    def __init__(self, prediction: str) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, x_t: Tensor, y: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        variance = (1 - t) ** 2 + (t * DEVIATION) ** 2
        surprise = (x_t - t * MEAN) / variance
        x_1, x_0 = MEAN + t * DEVIATION**2 * surprise, (1 - t) * surprise
        return x_1 if self.prediction == "x_1" else x_1 - x_0


class Mixed(nn.Module):
    """Something that depends on all three inputs, and rounds alike in torch and NumPy."""

    def forward(self, x_t: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x_t * y + t[:, None, None, None] * (y - x_t)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x_0 = torch.randn(5, 1, 6, 7, generator=generator)
    x_1, y = (torch.rand(5, 1, 6, 7, generator=generator) for _ in range(2))
    return x_0, x_1, y, torch.tensor([0.0, 0.25, 0.5, 0.85, 0.99])


def test_the_path_is_straight_from_noise_to_image(batch: tuple[Tensor, ...]) -> None:
    x_0, x_1, _, _ = batch
    assert torch.equal(interpolate(x_0, x_1, torch.zeros(5)), x_0)
    assert torch.equal(interpolate(x_0, x_1, torch.ones(5)), x_1)
    torch.testing.assert_close(interpolate(x_0, x_1, torch.full((5,), 0.25)), x_0 + 0.25 * (x_1 - x_0))


def test_each_image_has_its_own_time(batch: tuple[Tensor, ...]) -> None:
    x_0, x_1, _, t = batch
    x_t = interpolate(x_0, x_1, t)
    for i in range(5):
        torch.testing.assert_close(x_t[i], (1 - t[i]) * x_0[i] + t[i] * x_1[i])


@predictions
def test_the_velocity_of_a_perfect_output_is_the_paths(batch: tuple[Tensor, ...], prediction: str) -> None:
    x_0, x_1, _, t = batch
    output = x_1 if prediction == "x_1" else x_1 - x_0
    found = velocity(output, interpolate(x_0, x_1, t), t, prediction=prediction)
    torch.testing.assert_close(found, x_1 - x_0, atol=1e-4, rtol=1e-4)  # at t = 0.99 rounding is divided by 0.01


@predictions
def test_the_velocity_of_half_outputs_is_computed_in_float32(batch: tuple[Tensor, ...], prediction: str) -> None:
    x_0, x_1, _, t = batch
    x_t = interpolate(x_0, x_1, t)
    found = velocity(x_1.half(), x_t, t, prediction=prediction)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, velocity(x_1.half().float(), x_t, t, prediction=prediction), atol=0, rtol=0)


def test_the_smallest_remainder_bounds_the_division(batch: tuple[Tensor, ...]) -> None:
    x_0, x_1, _, t = batch
    x_t = interpolate(x_0, x_1, t)
    found = velocity(x_1, x_t, t, prediction="x_1", smallest_remainder=0.2)
    torch.testing.assert_close(found, (x_1 - x_t) / torch.tensor([1, 0.75, 0.5, 0.2, 0.2])[:, None, None, None])


@predictions
def test_a_perfect_network_has_no_loss(batch: tuple[Tensor, ...], prediction: str) -> None:
    x_0, x_1, y, t = batch
    network = Answer(x_1 if prediction == "x_1" else x_1 - x_0)
    assert flow_matching_loss(network, x_0, x_1, y, t, prediction=prediction).item() == 0


@predictions
def test_the_loss_of_a_constant_offset(batch: tuple[Tensor, ...], prediction: str) -> None:
    x_0, x_1, y, t = batch
    offset = 0.25
    network = Answer(offset + (x_1 if prediction == "x_1" else x_1 - x_0))
    remainders = [max(1 - time, 0.1) if prediction == "x_1" else 1.0 for time in t.tolist()]
    expected = np.mean([(offset / remainder) ** 2 for remainder in remainders])
    assert SMALLEST_REMAINDER == 0.1
    assert flow_matching_loss(network, x_0, x_1, y, t, prediction=prediction).item() == pytest.approx(
        expected, rel=1e-5
    )


@predictions
def test_the_air_weighs_less_in_the_loss(prediction: str) -> None:
    x_0, x_1, t = torch.zeros(1, 1, 1, 4), torch.tensor([[[[0.0, 0.04, 0.5, 1.0]]]]), torch.zeros(1)
    network = Answer(x_1 + torch.tensor([3.0, 3.0, 1.0, 1.0]))  # squared errors of 9 in the air, of 1 in the head
    for weight in (1.0, 0.25):
        loss = flow_matching_loss(network, x_0, x_1, x_0, t, prediction=prediction, air_weight=weight)
        assert loss.item() == pytest.approx((2 * 9 * weight + 2 * 1) / 4)


@predictions
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_late_times_weigh_less_in_the_loss(batch: tuple[Tensor, ...], prediction: str, weight: float) -> None:
    x_0, x_1, y, t = batch
    network = Answer(0.25 + (x_1 if prediction == "x_1" else x_1 - x_0))
    remainders = [1.0, 0.75, 0.5, 0.15, 0.1]  # of the times 0, 0.25, 0.5, 0.85 and 0.99; the last is clipped
    power = weight - 2 if prediction == "x_1" else weight
    loss = flow_matching_loss(network, x_0, x_1, y, t, prediction=prediction, time_weight=weight)
    assert loss.item() == pytest.approx(0.0625 * np.mean(np.array(remainders) ** power), rel=1e-5)


def test_both_readings_of_one_network_have_the_same_loss_below_the_clip(batch: tuple[Tensor, ...]) -> None:
    x_0, x_1, y, t = (tensor[:4] for tensor in batch)
    x_t = interpolate(x_0, x_1, t)
    image = Mixed()(x_t, y, t)
    as_image = flow_matching_loss(Answer(image), x_0, x_1, y, t, prediction="x_1")
    as_velocity = flow_matching_loss(
        Answer(velocity(image, x_t, t, prediction="x_1")), x_0, x_1, y, t, prediction="velocity"
    )
    torch.testing.assert_close(as_image, as_velocity)


def test_the_network_sees_the_path_the_condition_and_the_time(batch: tuple[Tensor, ...]) -> None:
    x_0, x_1, y, t = batch
    seen: list[tuple[Tensor, ...]] = []
    network = Mixed()
    network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    flow_matching_loss(network, x_0, x_1, y, t, prediction="x_1")
    for found, expected in zip(seen[0], (interpolate(x_0, x_1, t), y, t), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
@predictions
def test_a_perfect_network_is_sampled_to_its_image(batch: tuple[Tensor, ...], prediction: str, steps: int) -> None:
    x_0, x_1, y, _ = batch
    network = Answer(x_1 if prediction == "x_1" else x_1 - x_0)
    found = sample(network, x_0, y, steps=steps, prediction=prediction)
    torch.testing.assert_close(found, x_1, atol=2e-6, rtol=0)


@predictions
def test_one_step_gives_the_mean(batch: tuple[Tensor, ...], prediction: str) -> None:
    x_0, _, y, _ = batch
    found = sample(Gaussian(prediction), x_0, y, steps=1, prediction=prediction)
    torch.testing.assert_close(found, torch.full_like(x_0, MEAN))


@predictions
def test_many_steps_carry_noise_to_the_target_distribution(prediction: str) -> None:
    x_0 = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(1))
    found = sample(Gaussian(prediction), x_0, torch.zeros_like(x_0), steps=500, prediction=prediction).double()
    count = x_0.numel()
    # Four standard errors of 40,000 draws, and 1 % for the error of the Euler method at 500 steps.
    assert found.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / math.sqrt(count))
    assert found.std().item() == pytest.approx(DEVIATION, rel=4 / math.sqrt(2 * count) + 0.01)
    standard = (found - found.mean()) / found.std()
    assert (standard**4).mean().item() == pytest.approx(3, abs=0.1), "still Gaussian"


def test_a_step_goes_along_the_velocity(batch: tuple[Tensor, ...]) -> None:
    x_t, _, y, t = batch
    step = EulerStep(Mixed(), prediction="velocity")
    dt = torch.tensor([0.5, 0.25, 0.125, 0.1, 0.01])
    found = step(x_t, y, t, dt)
    torch.testing.assert_close(found, x_t + dt[:, None, None, None] * Mixed()(x_t, y, t))
    assert found.dtype == torch.float32


def test_the_samplers_times_are_uniform() -> None:
    times: list[float] = []
    network = Answer(torch.zeros(2, 1, 3, 3))
    network.register_forward_pre_hook(lambda module, arguments: times.extend(arguments[2].tolist()))
    sample(network, torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3), steps=4, prediction="velocity")
    assert times == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_pytorchs_sampler_and_the_runtimes_agree(batch: tuple[Tensor, ...], steps: int) -> None:
    x_0, _, y, _ = batch

    def step(x_t: NDArray[np.float32], y: NDArray[np.float32], t: float, dt: float) -> NDArray[np.float32]:
        image = np.float32(0.5) * x_t * y + np.float32(t) * (y - x_t)
        return x_t + np.float32(dt) * ((image - x_t) / (np.float32(1) - np.float32(t)))

    expected = euler(step, x_0.numpy(), y.numpy(), uniform_time_grid(steps))
    found = sample(Mixed(), x_0, y, steps=steps, prediction="x_1").numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_sampling_keeps_no_gradients(batch: tuple[Tensor, ...]) -> None:
    x_0, x_1, y, _ = batch
    answer = x_1.clone().requires_grad_()
    assert not sample(Answer(answer), x_0, y, steps=2, prediction="x_1").requires_grad
