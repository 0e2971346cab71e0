"""A BIDS derivative data set: entities are read from a BIDS input name, others are refused.

Brain Imaging Data Structure 1.10: entities and their order, "Anatomy imaging data", "Common data types and metadata"
of derivatives. https://bids-specification.readthedocs.io
"""

import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.files import write_json, write_text
from lfmri_runtime.folder.names import split
from lfmri_runtime.job import Outputs

BIDS_VERSION = "1.10.0"
#: Entities of an anatomical scan in the order that BIDS gives them.
ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "chunk")
#: Contrasts of magnitude images.
CONTRASTS = ("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "PDT2", "UNIT1", "MEGRE", "MESE")
_NAME = re.compile(
    "".join(f"{'' if e == 'sub' else '(?:_'}{e}-(?P<{e}>[a-zA-Z0-9]+){'' if e == 'sub' else ')?'}" for e in ENTITIES)
    + f"_(?P<contrast>{'|'.join(CONTRASTS)})"
)
#: The validator is told of what is no part of the data set.
IGNORED = "*.result.json\n"
DESCRIPTION = (
    "desc-enhanced: a high-field-like image that a neural network made from a low-field scan; desc-uncertainty: its "
    "standard deviation over samples; neither was measured."
)
README = """# Enhanced scans

High-field-like images that a neural network made from low-field scans; not measured, not for diagnosis. Beside each
image a JSON file says how it was made. The raw scans are where `DatasetLinks` in dataset_description.json points.
"""


class Bids:
    """sub-XX/[ses-YY/]anat/sub-XX_..._desc-enhanced_T1w.nii.gz below OUT.

    Args:
        folder: OUT, the data set.
        source: where scans come from; the data set links to it as `raw`.
        bundle: that enhances.
        uncertainty: whether desc-uncertainty is written too.
    """

    def __init__(self, folder: Path, source: Path, bundle: Bundle, *, uncertainty: bool) -> None:
        self.folder = folder
        self._source = source
        self._bundle = bundle
        self._uncertainty = uncertainty

    def prepare(self) -> None:
        """Write dataset_description.json, a README, and what is no part of the data set.

        Raises:
            InputRefused: the folder is a data set of another kind.
            TryAgainLater: they cannot be written.
        """
        place = self.folder / "dataset_description.json"
        description = {
            "Name": "Enhanced scans",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [self._generator()],
            "DatasetLinks": {"raw": os.path.relpath(self._source, self.folder)},
        }
        if place.exists():
            _check_derivative(place)
            return
        write_text(self.folder / ".bidsignore", IGNORED)
        write_text(self.folder / "README.md", README)
        write_json(place, description)

    def image(self, name: str) -> Outputs:
        """The derivative's name, always .nii.gz.

        Raises:
            InputRefused: it is no BIDS name of an anatomical magnitude image.
        """
        entities = parse(name)
        contrast = entities.pop("contrast")
        folder = self.folder / f"sub-{entities['sub']}"
        folder = folder / f"ses-{entities['ses']}" / "anat" if "ses" in entities else folder / "anat"
        stem = "_".join(f"{entity}-{value}" for entity, value in entities.items())
        scan, deviation = (folder / f"{stem}_desc-{what}_{contrast}.nii.gz" for what in ("enhanced", "uncertainty"))
        return Outputs(scan, deviation if self._uncertainty else None)

    def series(self, name: str) -> Path:
        """BIDS holds no DICOM.

        Raises:
            InputRefused: always.
        """
        raise InputRefused(
            "DICOM has no place in the layout bids; expected NIfTI or MGH with a BIDS name: convert it, or use plain"
        )

    def details(self, name: str) -> dict[str, Any]:
        """BIDS' own keys: the source as a BIDS URI, and what made it."""
        entities = parse(name)
        session = f"ses-{entities['ses']}/" if "ses" in entities else ""
        return {
            "Description": DESCRIPTION,
            "Sources": [f"bids:raw:sub-{entities['sub']}/{session}anat/{name}"],
            "GeneratedBy": [self._generator()],
            "SkullStripped": False,  # raw data are not, and nothing is stripped here
        }

    def _generator(self) -> dict[str, str]:
        contract = self._bundle.contract
        return {
            "Name": "lfmri",
            "Version": version("lfmri"),
            "Description": f"bundle {contract.name} {contract.version}, sha256 {self._bundle.sha256}",
        }


def _check_derivative(place: Path) -> None:
    try:
        kind = json.loads(place.read_bytes())["DatasetType"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        kind = None
    if kind != "derivative":
        raise InputRefused(f"{place} is of no derivative data set; expected one, or an output folder that is empty")


def parse(name: str) -> dict[str, str]:
    """Entities of a raw anatomical scan's name in order, and its `contrast`.

    Raises:
        InputRefused: it is no such name, or names a phase, real or imaginary part.
    """
    match = _NAME.fullmatch(split(name)[0])
    if match is None:
        raise InputRefused(
            "no BIDS name of a raw anatomical scan; expected sub-01_T1w.nii.gz, with entities in BIDS' order and one "
            "of its contrasts; a name that came twice is refused too: give it a run-2, or use the layout plain"
        )
    entities = {entity: value for entity, value in match.groupdict().items() if value}
    if entities.get("part", "mag") != "mag":
        raise InputRefused(f"part-{entities['part']} is no magnitude image; expected part-mag or none")
    return entities
