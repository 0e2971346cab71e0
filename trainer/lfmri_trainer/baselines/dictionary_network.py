"""SRDD: super-resolution by a learned dictionary (Maeda, "Image super-resolution with deep dictionary", ECCV 2022).

With 64 atoms and scale 4 it has 9,337,203 parameters for three channels, those that the paper gives for IQT-DDL, and
9,302,899 for one. What the count does not settle is marked assumed.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

ATOMS = 64
SCALE = 4
#: Halvings of the binary tree that makes the atoms: 2^6 leaves.
DEPTH = 6
#: Channels of the tree; a leaf's make one atom of 4 x 4 pixels.
TREE = SCALE * SCALE
#: Widths of the U-Net++ from fine to coarse.
WIDTHS = (64, 128, 256, 512)
#: Channels that see the input directly.
DIRECT = 32
FEATURES = 64
BOTTLENECKS = 10
#: Luma of red, green and blue (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


def _convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    """(conv3-BatchNorm-ReLU) twice."""
    layers: list[nn.Module] = []
    for before, after in pairwise((in_channels, out_channels, out_channels)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class Dictionary(nn.Module):
    """Noise through a binary tree of small blocks to 64 atoms, (64, 1, 4, 4)."""

    noise: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(1, TREE, 1, 1))
        self.edges = nn.ModuleList(
            nn.Sequential(nn.Conv2d(TREE, TREE, 1), nn.ReLU(), nn.Conv2d(TREE, TREE, 1))
            for _ in range(2 ** (DEPTH + 1) - 2)
        )

    def forward(self) -> Tensor:
        """Grow the tree: ReLU on its edges, tanh at its leaves."""
        nodes = [self.noise]  # in the order of their levels: the children of node n are 2n + 1 and 2n + 2
        for number, edge in enumerate(self.edges):
            child = edge(nodes[number // 2])
            nodes.append(torch.tanh(child) if number >= len(self.edges) - ATOMS else functional.relu(child))
        return functional.pixel_shuffle(torch.cat(nodes[-ATOMS:]), SCALE)


class UNetPlusPlus(nn.Module):
    """Nested U-Net (Zhou et al. 2018) of four levels; the last node of the finest row."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.nodes = nn.ModuleDict()
        for column in range(len(WIDTHS)):
            for row in range(len(WIDTHS) - column):
                above = in_channels if row == 0 else WIDTHS[row - 1]
                channels = above if column == 0 else column * WIDTHS[row] + WIDTHS[row + 1]
                self.nodes[f"{row}_{column}"] = _convolutions(channels, WIDTHS[row])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, 8h, 8w) -> (batch, 64, 8h, 8w)."""
        rows: list[list[Tensor]] = [[] for _ in WIDTHS]
        for column in range(len(WIDTHS)):
            for row in range(len(WIDTHS) - column):
                if column == 0:
                    taken = x if row == 0 else functional.max_pool2d(rows[row - 1][0], 2)
                else:
                    raised = functional.interpolate(
                        rows[row + 1][column - 1], scale_factor=2, mode="bilinear", align_corners=True
                    )
                    taken = torch.cat([*rows[row], raised], dim=1)
                rows[row].append(self.nodes[f"{row}_{column}"](taken))
        return rows[0][-1]


class Bottleneck(nn.Module):
    """1x1 to a quarter, 3x3, 1x1, BatchNorm after each, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the same shape."""
        return functional.relu(x + self.layers(x))


class DictionaryNetwork(nn.Module):
    """A slice to four times its size: for each pixel a convex mixture of atoms, added to the bicubic luma.

    Args:
        in_channels: 3 (RGB; chroma by a small network of its own) or 1 (grey).
    """

    luma: Tensor

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        weights = torch.tensor(LUMA if in_channels == 3 else (1.0,))
        self.register_buffer("luma", weights[:, None, None], persistent=False)
        self.dictionary = Dictionary()
        self.code = nn.Sequential(
            nn.Conv2d(ATOMS, ATOMS, SCALE, stride=SCALE, groups=ATOMS), nn.ReLU(), nn.Conv2d(ATOMS, ATOMS, 1)
        )
        self.features = UNetPlusPlus(in_channels)
        self.direct = nn.Conv2d(in_channels, DIRECT, 3, padding=1)
        self.merge = nn.Conv2d(WIDTHS[0] + DIRECT, FEATURES, 3, padding=1)
        tail = FEATURES + ATOMS
        self.tail_in = nn.Conv2d(tail, tail, 1)
        self.tail_group = nn.Sequential(*(Bottleneck(tail) for _ in range(BOTTLENECKS)), nn.Conv2d(tail, tail, 1))
        self.tail_out = nn.Conv2d(tail, ATOMS, 1)
        self.shifted = nn.Sequential(nn.Conv2d(ATOMS, ATOMS, 2), nn.ReLU(), nn.Conv2d(ATOMS, ATOMS, 1))
        self.fuse = nn.Conv2d(2, 1, 5, padding=2)
        self.chroma: nn.Module | None = None
        if in_channels == 3:
            self.chroma = nn.Sequential(
                nn.Conv2d(3, 64, 5, padding=2),
                nn.Tanh(),
                nn.Conv2d(64, 32, 3, padding=1),
                nn.Tanh(),
                nn.Conv2d(32, 2 * SCALE * SCALE, 3, padding=1),
                nn.PixelShuffle(SCALE),
            )

    def forward(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """Estimate luma, and chroma where there are three channels.

        Args:
            x: (batch, in_channels, 8h, 8w).
            order: permutation of the atoms, which while it changes keeps them from specialising early.

        Returns:
            (batch, in_channels, 32h, 32w), float32: Y, Cb, Cr.
        """
        atoms = self.dictionary()
        atoms = atoms if order is None else atoms[order]
        code = self.code(atoms.transpose(0, 1)).expand(len(x), -1, *x.shape[2:])
        features = self.merge(torch.cat([self.features(x), self.direct(x)], dim=1))
        tail = self.tail_in(torch.cat([features, code], dim=1))
        coefficients = self.tail_out(tail + self.tail_group(tail)).float().softmax(dim=1)
        detail = self._compensated(_tiled(coefficients, atoms), coefficients, atoms)
        luma = (x.float() * self.luma).sum(dim=1, keepdim=True)
        raised = functional.interpolate(luma, scale_factor=SCALE, mode="bicubic", align_corners=False)
        planes = [raised + detail] if self.chroma is None else [raised + detail, self.chroma(x).float()]
        return torch.cat(planes, dim=1)

    def _compensated(self, detail: Tensor, coefficients: Tensor, atoms: Tensor) -> Tensor:
        """Fuse in atoms that lie half a patch further, inside the border; from the coefficients (assumed)."""
        half = SCALE // 2
        shifted = _tiled(self.shifted(coefficients).float().softmax(dim=1), atoms)
        inside = detail[..., half:-half, half:-half]
        fused = self.fuse(torch.cat([inside, shifted], dim=1)).float()
        return detail + functional.pad(fused - inside, (half,) * 4)


def _tiled(coefficients: Tensor, atoms: Tensor) -> Tensor:
    """(batch, 64, h, w) and (64, 1, 4, 4) -> the mixtures as a picture, (batch, 1, 4h, 4w)."""
    mixed = torch.einsum("bkhw,kp->bphw", coefficients, atoms.float().flatten(1))
    return functional.pixel_shuffle(mixed, SCALE)
