"""Which series are enhanced: T1w magnitude images of one head that nobody enhanced before; the rest is passed by."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfmri_runtime.dicom.identity import is_ours
from lfmri_runtime.dicom.parsing import refusing
from lfmri_runtime.dicom.planes import Plane, is_multi_frame, planes_of
from lfmri_runtime.dicom.series import MAX_FILES, SENSELESS, open_image
from lfmri_runtime.dicom.stacking import order_of
from lfmri_runtime.errors import InputRefused

#: Fewer slices or a smaller matrix are no scan of a head (assumed).
MIN_SLICES = 4
MIN_MATRIX = 16
#: ImageType of images that are no magnitudes: C.8.3.1.1.1, C.8.13.3.1 and what vendors write there.
NOT_MAGNITUDE = {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "MIXED", "COMPLEX", "VELOCITY MAP"}
#: ImageType of images that were calculated: their intensities are not those of a scan.
MAPS = {
    "ADC", "ADC MAP", "EADC", "FA", "TRACEW", "DIFFUSION MAP", "T1 MAP", "T2 MAP", "T2_STAR MAP", "R2 MAP",
    "R2_STAR MAP", "B0 MAP", "B1 MAP", "FIELD_MAP", "PROTON DENSITY MAP", "CBF", "CBV", "MTT", "TTP", "PERFUSION MAP",
    "SUBTRACTION", "STD_DEVIATION", "MIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE",
}  # fmt: skip
#: GE's private kind of image: 0 magnitude, 1 phase, 2 real, 3 imaginary.
GE_KIND = 0x0043102F
#: Names of scouts, and shorter words of them that stand alone; an underscore ends a word.
_LOCALISER = re.compile(
    r"locali[sz]er|scout|(?<![a-z0-9])(loc|survey|3[ _-]?plane|planscan)(?![a-z0-9])", re.IGNORECASE
)
#: Words of other contrasts in the names of a series; a name of _T1 beside them, or of a T1w sequence, outweighs them.
_OTHER_CONTRAST = re.compile(
    r"(?<![a-z0-9])(t2w?|t2[ _-]?star|flair|stir|pdw?|dwi|dti|diff(usion)?|swi|asl|bold|tof|angio|mra)(?![a-z0-9])",
    re.IGNORECASE,
)
_T1 = re.compile(r"(?<![a-z0-9])t1|mp2?rage|spgr|bravo", re.IGNORECASE)
#: Parts of the body that are no head, in BodyPartExamined (PS3.16 annex L).
_OTHER_PARTS = {
    "ABDOMEN", "ABDOMENPELVIS", "ANKLE", "ARM", "BREAST", "CALF", "CHEST", "CSPINE", "ELBOW", "FOOT", "FOREARM", "HAND",
    "HEART", "HIP", "KNEE", "LEG", "LIVER", "LSPINE", "PELVIS", "PROSTATE", "SHOULDER", "SPINE", "SSPINE", "THIGH",
    "TSPINE", "UTERUS", "WRIST",
}  # fmt: skip


def reason_to_pass_by(paths: Sequence[Path]) -> str | None:
    """Say from the headers of a series' files why it is not to be enhanced.

    Returns:
        a reason for people, without anything of the patient's; None if it is to be enhanced.

    Raises:
        InputRefused: a file cannot be read or is damaged.
    """
    if len(paths) > MAX_FILES:
        return f"{len(paths)} files, at most {MAX_FILES} are one stack of slices"
    planes: list[Plane] = []
    for path in paths:
        dataset = open_image(path, pixels=False)
        with refusing(path, SENSELESS):
            reason = _kind(dataset)
            if reason is not None:
                return reason
            if is_multi_frame(dataset) and len(paths) > 1:
                return f"{len(paths)} files, some of many frames; only one volume is enhanced"
            try:
                planes.extend(planes_of(dataset))
            except InputRefused as refusal:
                return str(refusal)
    return _size(planes)


def _kind(dataset: Any) -> str | None:
    """What one file says that it shows."""
    if str(dataset.get("Modality") or "MR").strip().upper() != "MR":
        return "not MR"
    if is_ours(dataset):
        return "enhanced already: it names lfmri among its equipment"
    types = _image_types(dataset)
    ge_kind = dataset[GE_KIND].value if GE_KIND in dataset else 0
    if types & NOT_MAGNITUDE or ge_kind in (1, 2, 3):
        return "not a magnitude image (phase, real, imaginary or mixed)"
    if "MOSAIC" in types:
        return "a mosaic, its slices tiled in one image"
    if types & MAPS:
        return "calculated, not acquired (a map, a subtraction or a projection)"
    names = " ".join(str(dataset.get(name) or "") for name in ("SeriesDescription", "ProtocolName"))
    if types & {"LOCALIZER", "SCOUT", "SURVEY"} or _LOCALISER.search(names):
        return "a localiser"
    part = str(dataset.get("BodyPartExamined") or "").strip().upper()
    if part in _OTHER_PARTS:
        return f"not a head (BodyPartExamined is {part})"
    other = _OTHER_CONTRAST.search(names)
    if other and not _T1.search(names):
        return f"named {other.group(1).upper()}, another contrast than T1w"
    return None


def _image_types(dataset: Any) -> set[str]:
    """What the image and its frames say they are: ImageType from the third value on, and the complex component."""
    holders = [dataset]
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in dataset.get(groups) or []:
            holders.extend(group.get("MRImageFrameTypeSequence") or [])
    values: list[Any] = []
    for holder in holders:
        for name in ("ImageType", "FrameType"):
            found = holder.get(name) or []
            values.extend([] if isinstance(found, str) else found[2:])
        values.append(holder.get("ComplexImageComponent") or "")
    return {str(value).strip().upper() for value in values}


def _size(planes: list[Plane]) -> str | None:
    """Whether the slices are one volume of some size."""
    if len(planes) < MIN_SLICES or min(min(plane.shape) for plane in planes) < MIN_MATRIX:
        rows = min((min(plane.shape) for plane in planes), default=0)
        return f"too small: {len(planes)} slices of {rows} pixels or more, expected {MIN_SLICES} of {MIN_MATRIX}"
    try:
        order_of(planes)
    except InputRefused as refusal:
        return str(refusal)
    return None
