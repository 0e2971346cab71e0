"""Tissue maps of a T1w brain: N4 bias correction, then a three-class Gaussian mixture inside the brain mask.

N4: Tustison et al., IEEE TMI 2010. The classes are ordered by intensity as in T1w: CSF < GM < WM.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 (its customary name)
from scipy import ndimage
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lfmri_runtime.errors import InputRefused

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

#: N4 works on every fourth voxel along each axis: the field is smooth, and a volume takes seconds instead of minutes.
N4_SHRINK = 4
#: Voxels that the mixture is fitted to: enough for class means to a thousandth.
FIT_VOXELS = 100_000
#: Depth of the rim that the mixture is not fitted to: half background, it would draw the CSF class to it.
RIM_VOXELS = 2
#: Percentiles that bound the fit: vessels, fat and bone that a generous mask lets in would draw a class to them.
FIT_PERCENTILES = (0.5, 99.5)
#: Where in the sorted intensities each class starts: about 15 % CSF, 50 % GM, 35 % WM.
CLASS_SHARES = (0.15, 0.50, 0.35)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run ITK, BLAS and OpenMP on one thread.

    Several add up in an order, and so to last bits, that depends on how many they are: what comes out would depend on
    the machine's cores. Nothing is lost where each subject has a process of its own.
    """
    # The filter's own setter does not reach the filters that N4 runs inside.
    itk: Any = sitk.ProcessObject
    threads = itk.GetGlobalDefaultNumberOfThreads()
    itk.SetGlobalDefaultNumberOfThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        itk.SetGlobalDefaultNumberOfThreads(threads)


@one_thread()
def bias_field(brain: FloatArray, mask: BoolArray, *, what: str = "brain") -> FloatArray:
    """Estimate the smooth multiplicative bias field by N4 (Tustison et al. 2010, with SimpleITK's defaults).

    Args:
        brain: Skull-stripped T1w, shape (x, y, z); what is not above 0 is left out.
        mask: The brain, same shape.
        what: The name for it in an error.

    Returns:
        The field, same shape, geometric mean 1 in the brain; outside the mask never beyond its range inside.

    Raises:
        InputRefused: N4 cannot take the volume, such as a single slice.
    """
    inside = mask & (brain > 0)
    image = sitk.GetImageFromArray(np.where(inside, brain, 0).astype(np.float32))
    correction: Any = sitk.N4BiasFieldCorrectionImageFilter()  # type: ignore[no-untyped-call]
    try:
        correction.Execute(_shrink(image), _shrink(sitk.GetImageFromArray(inside.astype(np.uint8))))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputRefused(f"{what}: N4 failed ({reason}); expected a whole brain; check image and mask") from error
    log_field = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image)).astype(np.float32)
    log_field -= log_field[inside].mean()
    return np.asarray(np.exp(log_field.clip(log_field[inside].min(), log_field[inside].max())), dtype=np.float32)


def _shrink(image: Any) -> Any:
    factors = [min(N4_SHRINK, max(1, size // N4_SHRINK)) for size in image.GetSize()]
    return sitk.Shrink(image, factors)  # type: ignore[no-untyped-call]


@one_thread()
def classify(brain: FloatArray, mask: BoolArray, *, what: str = "brain") -> tuple[FloatArray, FloatArray, FloatArray]:
    """Split a bias-corrected T1w brain into soft GM, WM and CSF by a three-class Gaussian mixture.

    The classes share one variance, so that the order of the posteriors follows that of the intensities: what is
    brighter than WM stays WM, what is darker than CSF stays CSF. With a variance each, a dark rim that a generous
    mask lets in widens CSF until it claims no voxel surely.

    Args:
        brain: Skull-stripped T1w, shape (x, y, z).
        mask: The brain, same shape.
        what: The name for it in an error.

    Returns:
        The posterior probabilities of GM, WM and CSF, same shape, summing to 1 in the mask and 0 outside.

    Raises:
        InputRefused: The intensities do not hold three classes.
    """
    mixture = _fit(brain[_core(mask) & (brain > 0)], what)
    order = np.argsort(mixture.means_[:, 0])
    maps = np.zeros((3, *brain.shape), dtype=np.float32)
    maps[:, mask] = mixture.predict_proba(brain[mask][:, None])[:, order].T
    return maps[1], maps[2], maps[0]


def _core(mask: BoolArray) -> BoolArray:
    """Leave out the mask's rim, where brain and background mix; a mask that is hardly more than rim stays whole."""
    core = np.asarray(ndimage.binary_erosion(mask, iterations=RIM_VOXELS), dtype=np.bool_)
    return core if core.sum() > mask.sum() / 4 else mask


def _fit(values: FloatArray, what: str) -> GaussianMixture:
    """Fit the mixture to a fixed subsample of intensities (n,), from the class quantiles on."""
    low, high = np.percentile(values, FIT_PERCENTILES)
    values = values[(values >= low) & (values <= high)]
    if len(np.unique(values)) < 16:
        raise InputRefused(f"{what}: under 16 intensities in the brain; expected a T1w image; check image and mask")
    if len(values) > FIT_VOXELS:
        values = np.random.default_rng(0).choice(values, FIT_VOXELS, replace=False)
    centres = np.cumsum(CLASS_SHARES) - np.asarray(CLASS_SHARES) / 2
    mixture = GaussianMixture(
        3,
        weights_init=CLASS_SHARES,
        means_init=np.quantile(values, centres)[:, None],
        precisions_init=np.full((1, 1), 16 / np.var(values)),
        covariance_type="tied",
        init_params="random_from_data",
        max_iter=500,
        random_state=0,
    )
    return mixture.fit(values.astype(np.float64)[:, None])
