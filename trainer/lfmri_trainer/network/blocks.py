"""The building blocks of the paper's section 2.2, each under the paper's name."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Periods of the sinusoidal time embedding span 1 to this many steps of t * TIME_SCALE (Vaswani et al. 2017).
MAX_PERIOD = 10_000.0
#: t runs over [0, 1]; sinusoids were designed for step numbers up to about a thousand.
TIME_SCALE = 1_000.0
#: Groups of every GroupNorm (assumed: the paper gives none).
GROUPS = 8


class TimeEmbedding(nn.Module):
    """Sinusoids of the flow's time, then a small multi-layer perceptron.

    Always computed in float32: t * 1000 before sin and cos has no room in half precision.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.perceptron = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed t of shape (batch,), in [0, 1], into (batch, width), float32."""
        half = self.width // 2
        exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
        phase = t.float()[:, None] * TIME_SCALE * torch.exp(-math.log(MAX_PERIOD) * exponents)
        embedded: Tensor = self.perceptron(torch.cat([phase.sin(), phase.cos()], dim=1))
        return embedded


class MultiScaleInput(nn.Module):
    """Parallel convolutions with kernels 1, 3, 5 and 7 (assumed), concatenated along the channels."""

    KERNELS = (1, 3, 5, 7)

    def __init__(self, in_channels: int, branch_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, branch_channels, kernel, padding=kernel // 2) for kernel in self.KERNELS
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> (batch, 4 * branch_channels, h, w)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al. 2018), reduction 4."""

    REDUCTION = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // self.REDUCTION)
        self.excite = nn.Linear(channels // self.REDUCTION, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Rescale each channel of (batch, channels, h, w) by a factor in (0, 1)."""
        weights = torch.sigmoid(self.excite(functional.silu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * weights[:, :, None, None]


class ResidualBlock(nn.Module):
    """Two conv-GroupNorm-SiLU layers, time added after the first, squeeze-and-excitation, shortcut (Fig. 3)."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_1 = nn.GroupNorm(GROUPS, out_channels)
        self.time = nn.Linear(time_width, out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm_2 = nn.GroupNorm(GROUPS, out_channels)
        self.attention = SqueezeExcitation(out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(batch, in_channels, h, w) and (batch, time_width) -> (batch, out_channels, h, w)."""
        hidden = functional.silu(self.norm_1(self.conv_1(x)))
        hidden = hidden + self.time(functional.silu(time))[:, :, None, None].to(hidden.dtype)
        hidden = functional.silu(self.norm_2(self.conv_2(hidden)))
        result: Tensor = self.attention(hidden) + self.shortcut(x)
        return result


class Downsample(nn.Module):
    """Pixel unshuffle (space to depth), then a convolution to the next level's channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(2)
        self.conv = nn.Conv2d(4 * in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, 2h, 2w) -> (batch, out_channels, h, w)."""
        result: Tensor = self.conv(self.unshuffle(x))
        return result


class Upsample(nn.Module):
    """A convolution to four times the channels, then pixel shuffle (depth to space)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> (batch, out_channels, 2h, 2w)."""
        result: Tensor = self.shuffle(self.conv(x))
        return result


class BottleneckTransformer(nn.Module):
    """Multi-head self-attention over all positions of the deepest feature map, then a perceptron; pre-norm."""

    HEADS = 4
    EXPANSION = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        self.norm_2 = nn.LayerNorm(channels)
        self.perceptron = nn.Sequential(
            nn.Linear(channels, self.EXPANSION * channels),
            nn.GELU(),
            nn.Linear(self.EXPANSION * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the same shape."""
        batch, channels, height, width = x.shape
        tokens: Tensor = x.flatten(2).transpose(1, 2)
        tokens = tokens + self._attend(self.norm_1(tokens))
        tokens = tokens + self.perceptron(self.norm_2(tokens))
        return tokens.transpose(1, 2).reshape(batch, channels, height, width)

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, positions, channels = tokens.shape
        heads = self.qkv(tokens).reshape(batch, positions, 3, self.HEADS, channels // self.HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.projection(attended.transpose(1, 2).reshape(batch, positions, channels))
        return result
