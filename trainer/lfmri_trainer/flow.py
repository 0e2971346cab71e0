"""Conditional flow matching: the straight path, its loss, and one Euler step of the learned flow (section 2.1).

x_t = (1 - t) x_0 + t x_1, with target velocity x_1 - x_0 (Lipman et al. 2022). The loss is always the velocity's
squared error; the network's output is read either as the velocity itself, the paper's literal form, or as x_1, from
which the velocity (x_1_hat - x_t) / (1 - t) follows.
"""

import torch
from torch import Tensor, nn

from lfmri_runtime.sampler import euler, uniform_time_grid

#: Standard intensity above which a voxel holds signal.
SIGNAL = 0.05
#: 1 - t is kept above this in the loss, where the velocity of an x_1 prediction would divide by nearly nothing.
SMALLEST_REMAINDER = 0.1


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """x_t on the straight path; x_0 and x_1 (batch, 1, h, w), t (batch,)."""
    t = t[:, None, None, None]
    return (1 - t) * x_0 + t * x_1


def velocity(output: Tensor, x_t: Tensor, t: Tensor, *, prediction: str, smallest_remainder: float = 0.0) -> Tensor:
    """The velocity that a network's output stands for, in float32.

    Args:
        output: of the network, (batch, 1, h, w).
        x_t: intermediate image, same shape.
        t: (batch,), in [0, 1).
        prediction: x_1 or velocity.
        smallest_remainder: lower bound of 1 - t.
    """
    if prediction == "velocity":
        return output.float()
    remainder = (1 - t).clamp(min=smallest_remainder)[:, None, None, None]
    return (output.float() - x_t) / remainder


def flow_matching_loss(
    network: nn.Module,
    x_0: Tensor,
    x_1: Tensor,
    y: Tensor,
    t: Tensor,
    *,
    prediction: str,
    air_weight: float = 1.0,
    time_weight: float = 0.0,
) -> Tensor:
    """E || v(x_t, y, t) - (x_1 - x_0) ||^2, a scalar; 1 - t clipped at 0.1 for an x_1 prediction.

    The clip applies to prediction and target alike, so that a perfect x_1 has zero loss at every t. Two weights,
    neither of them in the paper: the error of voxels whose x_1 holds no signal is multiplied by `air_weight`, and that
    at a time by (1 - t)^`time_weight`, with the same clip; 2 makes it that of x_1. The mean is over all voxels: so the
    processes of a distributed run may average their gradients, whatever each one's share of air.
    """
    x_t = interpolate(x_0, x_1, t)
    output: Tensor = network(x_t, y, t)
    remainder = (1 - t).clamp(min=SMALLEST_REMAINDER)[:, None, None, None]
    error = output.float() - (x_1 - x_0) if prediction == "velocity" else (output.float() - x_1) / remainder
    weight = torch.where(x_1 > SIGNAL, 1.0, air_weight)
    return (weight * remainder**time_weight * error.square()).mean()


class EulerStep(nn.Module):
    """One Euler step of a trained flow: (x_t, y, t, dt) -> x_t + dt * v(x_t, y, t), float32 in and out."""

    def __init__(self, network: nn.Module, *, prediction: str) -> None:
        super().__init__()
        self.network = network
        self.prediction = prediction

    def forward(self, x_t: Tensor, y: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        """x_t and y (batch, 1, h, w); t and dt (batch,), with t + dt <= 1."""
        output = self.network(x_t, y, t)
        return x_t + dt[:, None, None, None] * velocity(output, x_t, t, prediction=self.prediction)


@torch.no_grad()
def sample(network: nn.Module, x_0: Tensor, y: Tensor, *, steps: int, prediction: str) -> Tensor:
    """Integrate the flow from x_0 with the Euler method; the reference that every back end is compared with."""
    step = EulerStep(network, prediction=prediction)

    def advance(x_t: Tensor, condition: Tensor, t: float, dt: float) -> Tensor:
        times = torch.full((len(x_t),), t, device=x_t.device)
        result: Tensor = step(x_t, condition, times, torch.full_like(times, dt))
        return result

    return euler(advance, x_0, y, uniform_time_grid(steps))
