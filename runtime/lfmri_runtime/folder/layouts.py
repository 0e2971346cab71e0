"""Where an item's results go: names kept, or a BIDS derivative data set."""

import os
from pathlib import Path
from typing import Any, Protocol

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.folder.names import split
from lfmri_runtime.job import Outputs
from lfmri_runtime.sidecar import sidecar_path
from lfmri_runtime.volume import SUFFIXES


class Layout(Protocol):
    """Names of results below one folder.

    Attributes:
        folder: OUT.
    """

    folder: Path

    def prepare(self) -> None:
        """Write what a data set needs once.

        Raises:
            TryAgainLater: it cannot be written.
        """
        ...

    def image(self, name: str) -> Outputs:
        """Results of an image file.

        Raises:
            InputRefused: the layout has no place for such a name.
        """
        ...

    def series(self, name: str) -> Path:
        """Folder of the results of a DICOM item.

        Raises:
            InputRefused: the layout has no place for DICOM.
        """
        ...

    def details(self, name: str) -> dict[str, Any]:
        """What the sidecars say beside the run itself and the site's label."""
        ...


class Plain:
    """Names are kept.

    Args:
        folder: OUT.
        uncertainty: whether NAME_uncertainty is written too.
    """

    def __init__(self, folder: Path, *, uncertainty: bool) -> None:
        self.folder = folder
        self._uncertainty = uncertainty

    def prepare(self) -> None:
        """Names need nothing."""

    def image(self, name: str) -> Outputs:
        """The file's own name below OUT."""
        stem, suffix = split(name)
        return Outputs(self.folder / name, self.folder / f"{stem}_uncertainty{suffix}" if self._uncertainty else None)

    def series(self, name: str) -> Path:
        """A folder of the item's name below OUT."""
        return self.folder / split(name)[0]

    def details(self, name: str) -> dict[str, Any]:
        """Nothing more."""
        return {}


def is_image(name: str) -> bool:
    """Whether a name is one of NIfTI or MGH rather than of DICOM."""
    return name.lower().endswith(SUFFIXES)


def result_path(layout: Layout, name: str) -> Path:
    """Where result.json of an item goes: NAME.result.json in OUT."""
    return layout.folder / f"{split(name)[0]}.result.json"


def places(layout: Layout, name: str) -> list[Path]:
    """Everything that an item of this name may write.

    Raises:
        InputRefused: the layout has no place for it.
    """
    if not is_image(name):
        return [layout.series(name), result_path(layout, name)]
    outputs = layout.image(name)
    images = [path for path in (outputs.scan, outputs.uncertainty) if path is not None]
    return [*images, *map(sidecar_path, images), result_path(layout, name)]


def is_taken(layout: Layout, name: str) -> bool:
    """Whether something is there that an item of this name would replace."""
    try:
        return any(os.path.lexists(path) for path in places(layout, name))
    except InputRefused:
        return False
