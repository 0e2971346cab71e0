"""IQT-DDL, deep dictionary learning: the paper's learned competitor, identified by its parameter count as SRDD."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lfmri_trainer.baselines.dictionary_network import ATOMS, SCALE, DictionaryNetwork
from lfmri_trainer.baselines.fitting import Batch, Moment, NetworkSettings
from lfmri_trainer.baselines.networks import SliceNetworkMethod

#: The dictionary's learning rate, and the last share of the budget, in which it is frozen (Maeda 2022).
DICTIONARY_RATE = 5e-3
FROZEN = 0.9
#: The atoms are shuffled in the first steps (Maeda 2022), but in no more than this share of the budget (assumed).
SHUFFLED_STEPS = 1000
SHUFFLED_SHARE = 0.05
#: Rates are halved after this share of the budget ("late"; assumed).
HALVED = 0.8


@dataclass(frozen=True, kw_only=True)
class DictionarySettings(NetworkSettings):
    """As Maeda 2022: patches of 48 pixels of the reduced slice, 32 a step, Adam 2e-4 without weight decay."""

    batch: int = 32
    crop: int = 48 * SCALE
    learning_rate: float = 2e-4
    weight_decay: float = 0.0


class DeepDictionary(SliceNetworkMethod):
    """SRDD on grey slices repeated in three channels; trained with L1, read at the luma."""

    key = "iqt-ddl"
    title = "IQT-DDL"
    note = (
        "super-resolution by 4 in both directions of a slice, so its input is the interpolated slice reduced by 4 "
        "(bicubic, antialiased)."
    )
    Settings = DictionarySettings

    def build(self, settings: DictionarySettings) -> nn.Module:
        """Three poolings of the reduced slice: 32 voxels."""
        self.multiple = 8 * SCALE
        return DictionaryNetwork()

    def predict(self, y: Tensor) -> Tensor:
        """The luma."""
        return self._planes(y)[:, :1]

    def loss(self, batch: Batch, moment: Moment) -> Tensor:
        """Mean absolute error of luma and chroma; a grey slice has no chroma."""
        planes = self._planes(batch["y"], order=_order(moment, self.settings.seed))
        truth = torch.cat([batch["x_1"], torch.zeros_like(planes[:, 1:])], dim=1)
        return (planes - truth).abs().mean()

    def groups(self) -> Sequence[Iterable[nn.Parameter]]:
        """The dictionary apart from the rest."""
        named = list(self.network.named_parameters())
        return [[p for name, p in named if name.startswith("dictionary.") == inside] for inside in (False, True)]

    def rates(self, share: float) -> Sequence[float]:
        """Constant, halved late; the dictionary's is zero in the end."""
        factor = 0.5 if share >= HALVED else 1.0
        return [factor * self.settings.learning_rate, 0.0 if share >= FROZEN else factor * DICTIONARY_RATE]

    def _planes(self, y: Tensor, *, order: Tensor | None = None) -> Tensor:
        reduced = functional.interpolate(
            y.float(), scale_factor=1 / SCALE, mode="bicubic", antialias=True, align_corners=False
        )
        planes: Tensor = self.network(reduced.expand(-1, 3, -1, -1), order)
        return planes


def _order(moment: Moment, seed: int) -> Tensor | None:
    """The permutation of a step, a function of its number."""
    if moment.step >= SHUFFLED_STEPS or moment.share >= SHUFFLED_SHARE:
        return None
    return torch.randperm(ATOMS, generator=torch.Generator().manual_seed(seed * SHUFFLED_STEPS + moment.step))
