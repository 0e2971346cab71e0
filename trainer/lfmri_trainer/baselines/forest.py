"""IQT-RF: a random forest with a linear model in each leaf (Alexander et al. 2014), for thick slices.

A patch of thick slices gives the voxels between its two middle ones. scikit-learn's forest gives the partition; a
ridge regression is fitted to the patches in each leaf, and the trees' predictions are averaged.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge

from lfmri_runtime.errors import UsageError
from lfmri_trainer.baselines.anisotropic_network import FACTOR
from lfmri_trainer.baselines.fitted import Arrays, Fitted
from lfmri_trainer.baselines.method import Float32Array, Progress, VolumeMethod
from lfmri_trainer.baselines.pairs import TrainingPairs, volumes
from lfmri_trainer.flow import SIGNAL

#: In-plane voxels on either side of a patch's centre, and its slices: 5 x 5 x 4 thick ones to 4 voxels (assumed).
RADIUS = 2
SLICES = 4
FEATURES = SLICES * (2 * RADIUS + 1) ** 2
#: Share of the patches that are taken where the target holds signal; the rest from anywhere (assumed).
SIGNAL_SHARE = 0.8
#: Arrays of a tree, in scikit-learn's names.
NODES = ("children_left", "children_right", "feature", "threshold")


@dataclass(frozen=True, kw_only=True)
class ForestSettings:
    """A forest's size.

    Attributes:
        patches: that it is fitted on.
        trees: Alexander et al. 2014: 8.
        leaf: least patches in a leaf; some for each of a linear model's coefficients.
        ridge: the penalty of a leaf's coefficients.
        seed: of patches and trees.
    """

    patches: int = 400_000
    trees: int = 8
    leaf: int = 1_000
    ridge: float = 0.1
    seed: int = 0


class Forest(Fitted, VolumeMethod):
    """Eight trees, a ridge model in each leaf."""

    key = "iqt-rf"
    title = "IQT-RF"
    note = (
        f"its input is every {FACTOR}th slice of the interpolated scan along the thick axis, as SIQT's; its parameters "
        "are the numbers that nodes and leaves hold."
    )
    Settings = ForestSettings

    def __init__(self, settings: ForestSettings) -> None:
        super().__init__(settings)
        if min(settings.patches, settings.trees, settings.leaf) < 1 or settings.ridge < 0 or settings.seed < 0:
            raise UsageError(f"{settings}; expected at least one patch, tree and patch a leaf, and no negative number")
        self.trees: list[dict[str, NDArray[Any]]] = []

    def learn(self, training: TrainingPairs, *, checkpoint: Path, progress: Progress) -> str:
        """Draw patches and fit on them; too short to keep a checkpoint."""
        rng = np.random.default_rng(self.settings.seed)
        every = volumes(training)
        shares = np.full(len(every), self.settings.patches // len(every))
        shares[: self.settings.patches % len(every)] += 1
        parts = [
            _draw(rng, *(volume.astype(np.float32) for volume in pair), count=int(share))
            for pair, share in zip(every, shares, strict=True)
        ]
        self.fit_patches(*(np.concatenate(side) for side in zip(*parts, strict=True)), progress=progress)
        return f"{self.settings.patches} patches"

    def fit_patches(self, x: Float32Array, z: Float32Array, *, progress: Progress = lambda done, total: None) -> None:
        """Fit partition and leaves to patches x (n, features) and their voxels z (n, FACTOR)."""
        s = self.settings
        jobs = torch.get_num_threads()  # one number bounds all arithmetic of a benchmark
        forest = RandomForestRegressor(
            s.trees, max_features=1 / 3, min_samples_leaf=s.leaf, random_state=s.seed, n_jobs=jobs
        ).fit(x, z)
        self.trees = []
        for number, fitted in enumerate(forest.estimators_):
            tree = {name: getattr(fitted.tree_, name) for name in NODES}
            tree |= _leaves(leaf_of(tree, x), x, z, ridge=s.ridge)
            # In one layout before and after they were kept: the order of a product's sums depends on it.
            self.trees.append({name: np.ascontiguousarray(array) for name, array in tree.items()})
            progress(number + 1, s.trees)
        self._count()

    def predict(self, x: Float32Array) -> Float32Array:
        """Patches (n, features) -> voxels (n, FACTOR), the mean over the trees."""
        total = np.zeros((len(x), FACTOR), np.float32)
        for tree in self.trees:
            leaves = leaf_of(tree, x)
            order = np.argsort(leaves, kind="stable")
            found, first = np.unique(leaves[order], return_index=True)
            for leaf, members in zip(found, np.split(order, first[1:]), strict=True):
                row = np.searchsorted(tree["leaves"], leaf)
                total[members] += x[members] @ tree["coefficients"][row].T + tree["intercepts"][row]
        mean: Float32Array = total / np.float32(len(self.trees))
        return mean

    def enhance_volume(self, y: Float32Array) -> Float32Array:
        """Gap by gap between the thick slices."""
        length, rows, columns = y.shape
        gaps = -(-length // FACTOR)
        result = np.empty((gaps * FACTOR, rows, columns), np.float32)
        thick = _thick(y)
        places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
        for gap in range(gaps):
            x = _patches(thick, np.full(len(places), gap), places)
            result[gap * FACTOR : (gap + 1) * FACTOR] = self.predict(x).T.reshape(FACTOR, rows, columns)
        return result[:length]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return every tree's nodes and leaves."""
        return {f"{number}/{name}": array for number, tree in enumerate(self.trees) for name, array in tree.items()}

    def restore(self, arrays: Arrays) -> None:
        """Take what `arrays` gave."""
        names = (*NODES, "leaves", "coefficients", "intercepts")
        self.trees = [{n: arrays[f"{number}/{n}"] for n in names} for number in range(self.settings.trees)]
        for tree in self.trees:
            _check(tree)
        self._count()

    def _count(self) -> None:
        learned = ("feature", "threshold", "coefficients", "intercepts")
        self.parameters = sum(tree[name].size for tree in self.trees for name in learned)


def leaf_of(tree: Arrays, x: Float32Array) -> NDArray[np.int64]:
    """The leaf's node number of each patch, as scikit-learn's `apply`."""
    node = np.zeros(len(x), np.int64)
    inner = np.arange(len(x)) if tree["children_left"][0] >= 0 else np.empty(0, np.int64)
    while len(inner):
        at = node[inner]
        left = x[inner, tree["feature"][at]] <= tree["threshold"][at]
        node[inner] = np.where(left, tree["children_left"][at], tree["children_right"][at])
        inner = inner[tree["children_left"][node[inner]] >= 0]
    return node


def _leaves(leaves: NDArray[np.int64], x: Float32Array, z: Float32Array, *, ridge: float) -> dict[str, NDArray[Any]]:
    """A ridge model for each leaf; its penalty is scaled by the number of patches."""
    numbers = np.unique(leaves)
    coefficients, intercepts = [], []
    for number in numbers:
        members = leaves == number
        model = Ridge(alpha=ridge).fit(x[members], z[members])
        coefficients.append(model.coef_)
        intercepts.append(model.intercept_)
    return {
        "leaves": numbers,
        "coefficients": np.stack(coefficients).astype(np.float32),
        "intercepts": np.stack(intercepts).astype(np.float32),
    }


def _check(tree: Arrays) -> None:
    """Refuse a tree in which a walk would not end, or would leave the arrays. Raises ValueError."""
    left, right, feature = (tree[name] for name in ("children_left", "children_right", "feature"))
    inner = np.flatnonzero(left >= 0)
    for children in (left[inner], right[inner]):
        if (children <= inner).any() or (children >= len(left)).any():
            raise ValueError("a tree's nodes do not follow each other")
    leaves = np.flatnonzero(left < 0)
    if (feature[inner] < 0).any() or (feature[inner] >= FEATURES).any() or not np.isin(leaves, tree["leaves"]).all():
        raise ValueError("a tree's features or leaves are not those of its patches")


def _thick(y: Float32Array) -> Float32Array:
    """Every FACTOR-th slice, with as many repeated at the borders as patches need."""
    thick = y[::FACTOR]
    before = SLICES // 2 - 1
    return np.pad(thick, [(before, SLICES // 2), (RADIUS, RADIUS), (RADIUS, RADIUS)], mode="edge")


def _patches(thick: Float32Array, gaps: NDArray[np.int64], places: NDArray[np.int64]) -> Float32Array:
    """Patches (n, FEATURES) whose second slice is the gap's first, around in-plane places (n, 2)."""
    side = 2 * RADIUS + 1
    windows = np.lib.stride_tricks.sliding_window_view(thick, (SLICES, side, side))
    taken: Float32Array = windows[gaps, places[:, 0], places[:, 1]].reshape(len(gaps), FEATURES)
    return taken


def _draw(
    rng: np.random.Generator, y: Float32Array, x_1: Float32Array, *, count: int
) -> tuple[Float32Array, Float32Array]:
    """Random patches of one pair, most of them where the target holds signal."""
    gaps = len(x_1) // FACTOR
    voxels = x_1[: gaps * FACTOR].reshape(gaps, FACTOR, *x_1.shape[1:])
    anywhere = np.arange(voxels[:, 0].size)
    signal = np.flatnonzero(voxels.max(axis=1) > SIGNAL)
    wanted = int(count * SIGNAL_SHARE) if len(signal) else 0
    chosen = np.concatenate([rng.choice(signal, wanted), rng.choice(anywhere, count - wanted)])
    gap, row, column = np.unravel_index(chosen, voxels[:, 0].shape)
    x = _patches(_thick(y), gap, np.stack([row, column], axis=-1))
    return x, np.ascontiguousarray(voxels[gap, :, row, column])
