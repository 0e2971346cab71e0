"""The Euler method for the flow's ordinary differential equation (the paper's equations 1 and 2)."""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array")


def uniform_time_grid(steps: int) -> NDArray[np.float64]:
    """0 = t_0 < ... < t_steps = 1, equally spaced; steps + 1 points."""
    return np.linspace(0.0, 1.0, steps + 1)


def euler(
    step: Callable[[Array, Array, float, float], Array], x_0: Array, y: Array, time_grid: NDArray[np.float64]
) -> Array:
    """Integrate dx/dt = v(x_t, y, t) from noise to image.

    Args:
        step: one Euler step, (x_t, y, t, dt) -> x_t + dt * v(x_t, y, t).
        x_0: noise, N(0, source_std^2 I).
        y: the condition, of the same shape.
        time_grid: ascending from 0 to 1.

    Returns:
        x at time 1.
    """
    x_t = x_0
    for t, t_next in pairwise(time_grid.tolist()):
        x_t = step(x_t, y, t, t_next - t)
    return x_t
