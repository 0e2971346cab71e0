"""SIQT's anisotropic 3-D U-Net (Lin et al. 2023): thick slices in, isotropic voxels out.

Volumes are (batch, channels, z, a, b), z along the thick axis. Only a and b are pooled until z has as few voxels as
they; skips are raised along z by a deconvolution. What the text does not say is marked assumed.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Slice spacing in voxels, and the side of the isotropic output patch (Lin et al. 2023).
FACTOR = 4
PATCH = 32
#: 16 filters, doubled at each of five levels (doubling assumed).
WIDTHS = (16, 32, 64, 128, 256)
#: Poolings in plane alone: 2 x 2 makes up for FACTOR.
PLANAR = 2


class ResidualCore(nn.Module):
    """Two conv3-BatchNorm, residual, with ReLU (normalisation assumed)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm3d(out_channels),
        )
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, z, a, b) -> (batch, out_channels, z, a, b)."""
        return functional.relu(self.layers(x) + self.shortcut(x))


class RaisingSkip(nn.Module):
    """A residual bottleneck (to a half, assumed), then a deconvolution along z where it must be raised."""

    def __init__(self, channels: int, raised: int) -> None:
        super().__init__()
        inner = channels // 2
        self.layers = nn.Sequential(
            nn.Conv3d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv3d(inner, inner, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(inner, channels, 1),
        )
        kernel = (raised, 1, 1)
        self.raise_z = nn.ConvTranspose3d(channels, channels, kernel, stride=kernel) if raised > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, z, a, b) -> (batch, channels, raised * z, a, b)."""
        result: Tensor = self.raise_z(functional.relu(x + self.layers(x)))
        return result


class AnisotropicUNet(nn.Module):
    """(batch, 1, 8, 32, 32) -> (batch, 1, 32, 32, 32), or any multiple of that."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            ResidualCore(before, after) for before, after in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True)
        )
        self.skips = nn.ModuleList(
            RaisingSkip(width, 2 ** max(PLANAR - level, 0)) for level, width in enumerate(WIDTHS[:-1])
        )
        self.raises = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(WIDTHS))
        self.decoder = nn.ModuleList(ResidualCore(2 * width, width) for width in WIDTHS[:-1])
        self.output = nn.Conv3d(WIDTHS[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Linear output, in the precision of the weights."""
        levels = []
        for level, core in enumerate(self.encoder):
            if level:
                x = functional.max_pool3d(x, (1, 2, 2) if level <= PLANAR else 2)
            x = core(x)
            levels.append(x)
        for level in reversed(range(len(self.decoder))):
            skip = self.skips[level](levels[level])
            x = self.decoder[level](torch.cat([self.raises[level](x), skip], dim=1))
        result: Tensor = self.output(x)
        return result
