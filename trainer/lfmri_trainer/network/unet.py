"""The time-conditioned U-Net of the paper (section 2.2, Fig. 2), in the two published-count configurations."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lfmri_trainer.network.blocks import (
    GROUPS,
    BottleneckTransformer,
    Downsample,
    MultiScaleInput,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
)

#: Blocks on each level of the encoder and of the decoder (assumed).
BLOCKS_PER_LEVEL = 2


@dataclass(frozen=True, kw_only=True)
class UNetConfiguration:
    """What distinguishes one U-Net from another. Widths are in channels, levels from fine to coarse."""

    widths: tuple[int, ...]
    branch_channels: int
    fused_channels: int | None  #: channels after the 1x1 fusion of the branches; None: the first block takes them all
    time_width: int
    bottleneck_blocks: bool  #: a residual block on either side of the transformer
    widening_upsample: bool  #: the up-sampling convolution also changes the number of channels
    normalised_output: bool  #: GroupNorm and a 1x1 convolution at the end in place of a 3x3 convolution

    @property
    def multiple(self) -> int:
        """Both slice sides must be divisible by this many voxels."""
        return int(2 ** (len(self.widths) - 1))


class Level(nn.ModuleList):
    """The residual blocks of one level, one after the other."""

    def __init__(self, in_channels: int, width: int, time_width: int) -> None:
        channels = (in_channels, *[width] * BLOCKS_PER_LEVEL)
        super().__init__(ResidualBlock(before, after, time_width) for before, after in pairwise(channels))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(batch, in_channels, h, w) and (batch, time_width) -> (batch, width, h, w)."""
        for block in self:
            x = block(x, time)
        return x


class UNet(nn.Module):
    """(x_t, y, t) -> the network's raw output, read as x_1 or as the velocity (lfmri_trainer.flow)."""

    def __init__(self, configuration: UNetConfiguration) -> None:
        super().__init__()
        self.configuration = configuration
        widths, time = configuration.widths, configuration.time_width
        self.time_embedding = TimeEmbedding(time)
        self.multi_scale_input = MultiScaleInput(2, configuration.branch_channels)
        channels = len(MultiScaleInput.KERNELS) * configuration.branch_channels
        self.fuse: nn.Module = nn.Identity()
        if configuration.fused_channels is not None:
            self.fuse = nn.Conv2d(channels, configuration.fused_channels, 1)
            channels = configuration.fused_channels
        self.encoder = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        for level, width in enumerate(widths):
            if level > 0:
                self.downsamples.append(Downsample(channels, width))
                channels = width
            self.encoder.append(Level(channels, width, time))
            channels = width
        self.bottleneck = nn.ModuleList([BottleneckTransformer(channels)])
        if configuration.bottleneck_blocks:
            self.bottleneck.insert(0, ResidualBlock(channels, channels, time))
            self.bottleneck.append(ResidualBlock(channels, channels, time))
        self.upsamples = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for width in reversed(widths[:-1]):
            raised = width if configuration.widening_upsample else channels
            self.upsamples.append(Upsample(channels, raised))
            self.decoder.append(Level(raised + width, width, time))
            channels = width
        if configuration.normalised_output:
            self.output: nn.Module = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.Conv2d(channels, 1, 1))
        else:
            self.output = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x_t: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """Evaluate the network in the precision of its weights; the time embedding stays in float32.

        Args:
            x_t: intermediate image, (batch, 1, h, w); h and w divisible by `configuration.multiple`.
            y: low-field slice, the condition, same shape.
            t: time of the flow, (batch,), in [0, 1], float32.

        Returns:
            (batch, 1, h, w), in the precision of the weights.
        """
        precision = next(self.multi_scale_input.parameters()).dtype
        time = self.time_embedding(t).to(precision)
        hidden = self.fuse(self.multi_scale_input(torch.cat([x_t, y], dim=1).to(precision)))
        skips = []
        for level, blocks in enumerate(self.encoder):
            if level > 0:
                skips.append(hidden)
                hidden = self.downsamples[level - 1](hidden)
            hidden = blocks(hidden, time)
        for module in self.bottleneck:
            hidden = module(hidden, time) if isinstance(module, ResidualBlock) else module(hidden)
        for upsample, blocks in zip(self.upsamples, self.decoder, strict=True):
            hidden = blocks(torch.cat([upsample(hidden), skips.pop()], dim=1), time)
        result: Tensor = self.output(hidden)
        return result


def parameter_count(network: nn.Module) -> int:
    """Number of learnable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
