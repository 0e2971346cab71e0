"""The golden check: does a back end give on this machine what the PyTorch sampler gave where the bundle was made?"""

import io
import zipfile
import zlib
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.backends import Step
from lfmri_runtime.bundle import GOLDEN, Bundle
from lfmri_runtime.errors import BackendMissing, BundleRefused
from lfmri_runtime.lpips import Lpips
from lfmri_runtime.metrics import psnr, ssim
from lfmri_runtime.sampler import uniform_time_grid

Float32Array = NDArray[np.float32]

#: Least PSNR against the golden result, dB: rounding to half precision gives 54 to 82, a wrong graph far less.
LEAST_PSNR = 50.0
#: Least SSIM against the golden result.
LEAST_SSIM = 0.999
#: Largest difference of LPIPS, each result against the same high-field slice.
LARGEST_LPIPS_DIFFERENCE = 0.002
#: Stands for the PSNR of identical arrays, which JSON cannot hold as infinity.
IDENTICAL_DB = 200.0
#: golden.npz holds a few small slices; more than this, packed or unpacked, is not one.
MAX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a back end is from the golden result after some number of steps.

    Attributes:
        steps: of the Euler method.
        psnr: dB; None where the values are not finite.
        ssim: None where scikit-image is not installed, or values are not finite.
        lpips_difference: None where the values are not finite.
    """

    steps: int
    psnr: float | None
    ssim: float | None
    lpips_difference: float | None

    @property
    def passes(self) -> bool:
        """Whether all that was measured lies within the limits, PSNR and LPIPS always among it."""
        return (
            self.psnr is not None
            and self.psnr >= LEAST_PSNR
            and self.lpips_difference is not None
            and self.lpips_difference <= LARGEST_LPIPS_DIFFERENCE
            and (self.ssim is None or self.ssim >= LEAST_SSIM)
        )

    def __str__(self) -> str:
        """One clause for a message."""
        if self.psnr is None or self.lpips_difference is None:
            return f"values that are not finite at {self.steps} steps"
        similarity = "not measured (no scikit-image)" if self.ssim is None else f"{self.ssim:.4f}"
        return f"{self.psnr:.1f} dB, SSIM {similarity}, LPIPS off by {self.lpips_difference:.4f} at {self.steps} steps"


@dataclass(frozen=True, eq=False)
class Golden:
    """What golden.npz holds; arrays are (batch, 1, h, w)."""

    x_0: Float32Array
    y: Float32Array
    x_1: Float32Array
    results: dict[int, Float32Array]


def read_golden(bundle: Bundle) -> Golden:
    """Read the bundle's golden arrays; the bytes that are hashed are the bytes that are read.

    Raises:
        BundleRefused: they are not those that the contract's steps ask for, or would take too much memory.
    """
    content = bundle.read(GOLDEN)
    names = ("x_0", "y", "x_1", *(f"result_{steps}" for steps in bundle.contract.steps))
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES} bytes")
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            unpacked = sum(entry.file_size for entry in packed.infolist())
        if unpacked > MAX_BYTES:
            raise ValueError(f"{unpacked} bytes unpacked, more than {MAX_BYTES}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in names}
        shapes = {(array.dtype, array.shape) for array in found.values()}
        if len(shapes) != 1 or found["y"].ndim != 4 or found["y"].dtype != np.float32:
            raise ValueError(f"arrays of {sorted(map(str, shapes))}")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleRefused(f"{bundle.path / GOLDEN}: {error}; expected {', '.join(names)}: export it again") from None
    results = {steps: found[f"result_{steps}"] for steps in bundle.contract.steps}
    return Golden(found["x_0"], found["y"], found["x_1"], results)


def measure_parity(step: Step, golden: Golden) -> list[Parity]:
    """Run the Euler loop on the golden noise for every number of steps of the contract, and compare."""
    lpips = Lpips(threads=1)
    rows = []
    for steps, expected in golden.results.items():
        (found,) = step.flow(iter([(golden.x_0, golden.y)]), uniform_time_grid(steps))
        if not np.isfinite(found).all():
            rows.append(Parity(steps=steps, psnr=None, ssim=None, lpips_difference=None))
            continue
        distances = [lpips(images[:, 0], golden.x_1[:, 0]) for images in (found, expected)]
        rows.append(
            Parity(
                steps=steps,
                psnr=min(psnr(found, expected), IDENTICAL_DB),
                ssim=_least_ssim(found, expected),
                lpips_difference=float(np.abs(distances[0] - distances[1]).max()),
            )
        )
    return rows


def failures(rows: list[Parity]) -> list[Parity]:
    """The rows that do not pass."""
    return [row for row in rows if not row.passes]


def has_ssim() -> bool:
    """Whether scikit-image is installed, which a scanner need not have; without it SSIM takes no part in the check."""
    try:
        return find_spec("skimage") is not None
    except ValueError:  # hidden from imports
        return False


def _least_ssim(found: Float32Array, expected: Float32Array) -> float | None:
    """The smallest SSIM over the slices; None without scikit-image."""
    try:
        return min(ssim(a[0], b[0]) for a, b in zip(found, expected, strict=True))
    except BackendMissing:
        return None
