"""Writing a derived series: it stands beside the original, says how it was made, and a retry writes the same bytes."""

from contextlib import suppress
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.console.settings import LABEL, check_label
from lfmri_runtime.dicom.classic import slice_dataset
from lfmri_runtime.dicom.encoding import encoding_for
from lfmri_runtime.dicom.identity import derived_uid, recipe
from lfmri_runtime.dicom.multiframe import stack_dataset
from lfmri_runtime.dicom.parsing import refusing
from lfmri_runtime.dicom.planes import planes_of
from lfmri_runtime.dicom.series import Series
from lfmri_runtime.dicom.target import ENHANCED, UNCERTAINTY, Product, Target
from lfmri_runtime.enhancer import Enhanced
from lfmri_runtime.errors import UsageError
from lfmri_runtime.files import atomic_write, check_writable

_UNWRITABLE = "elements of the original cannot be written again"
_IMPLEMENTATION = derived_uid("implementation", "lfmri")


def write_derived(
    folder: Path, series: Series, enhanced: Enhanced, *, bundle: Bundle, label: str = LABEL
) -> list[Path]:
    """Write an enhanced series: MR Image Storage for one, a file a slice, Enhanced MR for a multi-frame one.

    On the source's grid every slice keeps its geometry elements; on another grid they are made anew. The same series,
    model, settings and label give the same UIDs and the same bytes. Where it fails or is interrupted, the files that it
    made are removed again; those of an earlier run are the same, and stay.

    Args:
        folder: where the files go, one `SOPInstanceUID.dcm` each; it is created.
        series: the source.
        enhanced: of it.
        bundle: that enhanced it.
        label: the site's own text for SeriesDescription, printable ASCII without a backslash.

    Returns:
        the files in slice order.

    Raises:
        UsageError: a label that does not fit.
        InputRefused: the source's elements cannot be written.
        TryAgainLater: the disk is full or the folder cannot be written.
    """
    return _write(folder, _target(ENHANCED, series, enhanced, enhanced.mean, bundle, label))


def write_uncertainty(
    folder: Path, series: Series, enhanced: Enhanced, *, bundle: Bundle, label: str = LABEL
) -> list[Path]:
    """Write the standard deviation over samples as a series of its own; everything else as `write_derived`.

    Raises:
        UsageError: there is none, or a label that does not fit.
    """
    if enhanced.std is None:
        raise UsageError("one sample has no standard deviation; expected --samples of at least 2")
    return _write(folder, _target(UNCERTAINTY, series, enhanced, enhanced.std, bundle, label))


def derived_series_uid(series: Series, enhanced: Enhanced, *, bundle: Bundle, label: str = LABEL) -> str:
    """The SeriesInstanceUID that `write_derived` gives."""
    return _target(ENHANCED, series, enhanced, enhanced.mean, bundle, label).uid


def _target(
    product: Product, series: Series, enhanced: Enhanced, volume: NDArray[np.float32], bundle: Bundle, label: str
) -> Target:
    check_label(label)
    with refusing("the series", _UNWRITABLE):
        source = series.datasets[0]
        first = planes_of(source)[0]
        signed = bool(source.get("PixelRepresentation"))
        slices = sorted(str(dataset.get("SOPInstanceUID") or "") for dataset in series.datasets)
    encoding = encoding_for(volume, signed=signed, slope=first.slope, intercept=first.intercept)
    made = recipe(bundle, enhanced.report, label=label)
    uid = derived_uid("series", product.name, series.uid, *slices, *made)
    return Target(product, uid, series, volume, enhanced.affine, encoding, bundle, enhanced.report, label)


def _write(folder: Path, target: Target) -> list[Path]:
    count = 1 if target.series.frames else target.volume.shape[2]
    paths = [folder / f"{target.instance_uid(index)}.dcm" for index in range(count)]
    new, made = not folder.exists(), [path for path in paths if not path.exists()]
    try:
        check_writable(paths[0])
        for index, path in enumerate(paths):
            with refusing("the series", _UNWRITABLE):
                content = _encoded(stack_dataset(target) if target.series.frames else slice_dataset(target, index))
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
    except BaseException:  # an interrupt too: a part of a series would pass for the whole
        _remove(made, folder if new else None)
        raise
    return paths


def _remove(paths: list[Path], folder: Path | None) -> None:
    """Remove what there is of `paths` and then `folder`, if it is empty; nothing here hides why."""
    for path in paths:
        with suppress(OSError):
            path.unlink()
    if folder is not None:
        with suppress(OSError):
            folder.rmdir()


def _encoded(dataset: Dataset) -> bytes:
    """A file of PS3.10; its meta information holds no time."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    dataset.file_meta.ImplementationVersionName = f"LFMRI {version('lfmri')}"[:16]
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
