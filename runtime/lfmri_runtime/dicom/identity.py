"""Who made a derived series and which one it is: UIDs that a retry makes again, equipment, derivation."""

import uuid
from importlib.metadata import version
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from lfmri_runtime.bundle import Bundle

#: Scheme of our codes: no standard code says what this derivation does. PS3.16 8.2 keeps 99 for local schemes.
SCHEME = "99LFMRI"
MAKER = "lfmri"
PROCESSING_EQUIPMENT = ("109102", "DCM", "Processing Equipment")
SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")
#: Settings of a report that change the pixels.
_SETTINGS = ("steps", "samples", "seed", "grid", "thick_axis")


def code(value: str, scheme: str, meaning: str) -> Sequence:
    """A code sequence of one item, 8.8."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])


def derived_uid(*parts: str) -> str:
    """A UID that the same parts always give: a name-based UUID under 2.25, PS3.5 B.2."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(10).join(parts)).int}"


def recipe(bundle: Bundle, report: dict[str, Any], *, label: str) -> tuple[str, ...]:
    """All that decides what a derived series holds, its source apart."""
    settings = (f"{name}={report[name]}" for name in _SETTINGS)
    backend = report["backend"]  # it rounds in its own way, and one UID stands for one set of bytes
    return (MAKER, version(MAKER), bundle.sha256, *settings, backend["name"], backend["precision"], label)


def equipment(bundle: Bundle) -> Dataset:
    """The item that is appended to ContributingEquipmentSequence, C.12.1.1.5; no time, so that a retry agrees."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = code(*PROCESSING_EQUIPMENT)
    item.Manufacturer = MAKER
    item.ManufacturerModelName = bundle.contract.name[:64]
    item.SoftwareVersions = [f"{MAKER} {version(MAKER)}", f"model {bundle.contract.version}"[:64], bundle.sha256]
    item.ContributionDescription = "Image quality transfer; not a medical device"
    return item


def is_ours(dataset: Any) -> bool:
    """Whether we are among the equipment of an image: our own output is never enhanced again."""
    return any(
        str(item.get("Manufacturer") or "").strip() == MAKER
        for item in dataset.get("ContributingEquipmentSequence") or []
    )
