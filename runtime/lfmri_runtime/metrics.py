"""PSNR and SSIM of one slice, whole and inside a mask.

Both take the data range as a setting (1.0: the contract's scale) and never guess it from the images, because a range
guessed from the prediction hides scale errors. Images are 2-D (SSIM) or of any shape (PSNR), finite, on one grid.
SSIM follows Wang et al. 2004: Gaussian weights with a standard deviation of 1.5 pixels, covariances without the
sample correction. It comes from scikit-image (extra `evaluate`); PSNR needs NumPy alone.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused, missing_extra

#: Standard deviation of SSIM's Gaussian weights in pixels (Wang et al. 2004, section III-C).
SSIM_SIGMA = 1.5
#: Width in pixels of SSIM's window: 2 * int(3.5 * SSIM_SIGMA + 0.5) + 1; smaller images are refused.
SSIM_WINDOW = 11

Image = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


def psnr(image: Image, reference: Image, *, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio, 10 log10(data_range^2 / mean squared error).

    Args:
        image: The image to judge, any shape, in the reference's unit.
        reference: The truth, same shape.
        data_range: Span of possible values in the images' unit; positive.

    Returns:
        The ratio in dB; inf for identical images.

    Raises:
        InputRefused: The shapes differ, a value is not finite, or data_range is not positive.
    """
    _check_pair(image, reference, data_range)
    return _decibel(_squared_error(image, reference), data_range)


def masked_psnr(image: Image, reference: Image, mask: Mask, *, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio over the voxels inside a mask; otherwise as `psnr`.

    Args:
        image: The image to judge, any shape, in the reference's unit.
        reference: The truth, same shape.
        mask: True inside, same shape; at least one voxel.
        data_range: Span of possible values in the images' unit; positive.

    Returns:
        The ratio in dB; inf for images that are identical inside the mask.

    Raises:
        InputRefused: As `psnr`; or the mask's shape differs, or it is empty.
    """
    _check_pair(image, reference, data_range)
    inside = _checked_mask(mask, reference)
    return _decibel(_squared_error(image, reference)[inside], data_range)


def ssim_map(image: Image, reference: Image, *, data_range: float = 1.0) -> NDArray[np.float64]:
    """Structural similarity per pixel (Wang et al. 2004, equation 13).

    Args:
        image: The image to judge, (h, w), in the reference's unit.
        reference: The truth, same shape; each side at least SSIM_WINDOW pixels.
        data_range: Span of possible values in the images' unit; positive.

    Returns:
        The map, (h, w), within [-1, 1]; 1 where the images agree.

    Raises:
        InputRefused: As `psnr`; or the images are not 2-D or smaller than the window.
        BackendMissing: scikit-image is not installed.
    """
    return _ssim(image, reference, data_range)[1]


def ssim(image: Image, reference: Image, *, data_range: float = 1.0) -> float:
    """Mean structural similarity of a slice, as scikit-image computes it: half a window of border is left out.

    Args, bounds and errors are `ssim_map`'s; the mean lies within [-1, 1].
    """
    return _ssim(image, reference, data_range)[0]


def masked_ssim(image: Image, reference: Image, mask: Mask, *, data_range: float = 1.0) -> float:
    """Mean of `ssim_map` over the pixels inside a mask.

    The map is made of the whole images first, so pixels near the mask's edge see what lies outside it.

    Args:
        image: The image to judge, (h, w), in the reference's unit.
        reference: The truth, same shape.
        mask: True inside, same shape; at least one pixel.
        data_range: Span of possible values in the images' unit; positive.

    Returns:
        The mean, within [-1, 1].

    Raises:
        InputRefused: As `ssim_map`; or the mask's shape differs, or it is empty.
        BackendMissing: scikit-image is not installed.
    """
    return masked_mean(ssim_map(image, reference, data_range=data_range), mask)


def ssim_with_map(image: Image, reference: Image, *, data_range: float = 1.0) -> tuple[float, NDArray[np.float64]]:
    """`ssim` and `ssim_map` in one computation, for callers that want both; bounds and errors are theirs."""
    return _ssim(image, reference, data_range)


def masked_mean(values: Image, mask: Mask) -> float:
    """Mean of values over the elements inside a mask of the same shape that is not empty.

    Raises:
        InputRefused: The mask's shape differs, or it is empty.
    """
    return float(np.mean(values[_checked_mask(mask, values)], dtype=np.float64))


def _ssim(image: Image, reference: Image, data_range: float) -> tuple[float, NDArray[np.float64]]:
    """Mean and map from scikit-image, in float64."""
    _check_pair(image, reference, data_range)
    if reference.ndim != 2 or min(reference.shape) < SSIM_WINDOW:
        raise InputRefused(
            f"SSIM got an image of shape {reference.shape}; it takes 2-D slices of at least "
            f"{SSIM_WINDOW} x {SSIM_WINDOW} pixels: choose another slice axis"
        )
    try:
        from skimage import metrics
    except ImportError:
        raise missing_extra("evaluate", "scikit-image") from None
    scikit_image: Any = metrics  # its functions carry no types
    mean, full = scikit_image.structural_similarity(
        np.asarray(image, np.float64),
        np.asarray(reference, np.float64),
        data_range=data_range,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return float(mean), full


def _squared_error(image: Image, reference: Image) -> NDArray[np.float64]:
    return np.square(np.asarray(image, np.float64) - np.asarray(reference, np.float64))


def _decibel(squared_error: NDArray[np.float64], data_range: float) -> float:
    mean = float(squared_error.mean())
    return math.inf if mean == 0.0 else 10.0 * math.log10(data_range**2 / mean)


def _check_pair(image: Image, reference: Image, data_range: float) -> None:
    """Refuse what has no score rather than return a number for it."""
    if image.shape != reference.shape or image.size == 0:
        raise InputRefused(
            f"images of shapes {image.shape} and {reference.shape} cannot be compared; "
            "both must have one shape that is not empty: resample one onto the other's grid"
        )
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputRefused(f"the data range is {data_range}; it must be a positive number: 1.0 after scaling")
    if not (np.isfinite(image).all() and np.isfinite(reference).all()):
        raise InputRefused("an image holds values that are not finite; scores need finite ones: replace NaN and inf")


def _checked_mask(mask: Mask, like: Image) -> Mask:
    """The mask as booleans of the image's shape, with at least one voxel."""
    inside = np.asarray(mask, bool)
    if inside.shape != like.shape or not inside.any():
        raise InputRefused(
            f"the mask has shape {inside.shape} and {int(inside.sum())} voxels inside; "
            f"expected shape {like.shape} and at least one voxel: give the mask of this grid"
        )
    return inside
