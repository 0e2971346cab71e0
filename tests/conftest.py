"""Fixtures that several test files share."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from .bundles import MakeBundle, write_bundle

#: Files that take minutes, the longest first: begun last, they would keep one worker waiting for the other.
LONGEST = (
    *("test_docs", "test_train", "test_fresh", "test_line", "test_benchmark", "test_docs_console", "test_console_load"),
    *("test_dicom_node", "test_baselines", "test_graph"),
)

OBLIQUE = np.array(
    [[0.95, 0.10, -0.60, 4.0], [-0.12, 1.02, 0.30, -7.5], [0.31, -0.21, 4.0, 11.0], [0.0, 0.0, 0.0, 1.0]]
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, and keep the order otherwise."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def orthogonal(affine: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The closest transform to `affine` with right angles and these voxel sizes: what a scanner writes."""
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    result = affine.copy()
    result[:3, :3] = (left @ right) * spacing
    return result


@pytest.fixture
def make_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Write a NIfTI file into tmp_path: int16, 0 to 1200, 12 x 10 x 8 voxels of 1.5 x 1.5 x 5 mm in RAS order."""

    def make(
        name: str = "scan.nii.gz",
        *,
        data: np.ndarray | None = None,
        affine: np.ndarray | None = None,
        dtype: Any = np.int16,
        codes: tuple[int, int] = (1, 1),
        units: tuple[str, str] = ("mm", "sec"),
        image_class: Any = nib.Nifti1Image,
        **fields: Any,
    ) -> Path:
        if data is None:
            data = np.random.default_rng(7).beta(1.0, 4.0, (12, 10, 8)) * 1200
            data.flat[:2] = 0, 1200
            data = data / 10 if np.dtype(dtype).itemsize == 1 else data
        affine = np.diag([1.5, 1.5, 5.0, 1.0]) if affine is None else affine
        image = image_class(np.asarray(data).astype(dtype), None)  # no affine: nibabel would set codes of its own
        image.header.set_sform(affine, codes[0])
        image.header.set_qform(affine, codes[1])
        image.header.set_xyzt_units(*units)
        for field, value in fields.items():
            image.header[field] = value
        path = tmp_path / name
        image.to_filename(path)
        return path

    return make


@pytest.fixture
def oblique() -> np.ndarray:
    """A scanner's oblique transform, 1.5 x 1.2 x 5 mm."""
    return orthogonal(OBLIQUE, (1.5, 1.2, 5.0))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache is neither read nor written; commands that the tests start inherit this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run here, one after the other, where processes of their own are not what a test is about."""

    def here(jobs: Iterable[Callable[[], Any]], *, workers: int, ended: Callable[[Any], None]) -> None:
        for job in jobs:
            ended(job())

    for module in ("variation", "synthesis.folder", "simulation.simulate"):
        monkeypatch.setattr(f"lfmri_trainer.{module}.in_processes", here)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Write a bundle that predicts y, or y and a share of x_t ("noisy"), into a folder of its own."""

    def make(predicts: str = "y", **changes: Any) -> Path:
        return write_bundle(tmp_path_factory.mktemp("bundles") / "bundle", predicts, **changes)

    return make
