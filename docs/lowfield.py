"""Three real 0.055 T scans before and after: `python docs/lowfield.py FOLDER` enhances, measures, writes the page.

FOLDER holds NAME_055T_T1wGRE.nii.gz and NAME_3T_T1w.nii.gz of each patient in PATIENTS. What is written lies beside
this file: lowfield.json (every figure), lowfield.md (from the JSON alone, by lowfield_page.py) and lowfield-*.png.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from lowfield_measures import Array, Box, Boxes, background, measure, slice_correlations
from lowfield_page import page
from lowfield_pictures import draw

from lfmri_runtime.enhancer import interpolate
from lfmri_runtime.files import write_json, write_text
from lfmri_runtime.sidecar import read_sidecar
from lfmri_runtime.volume import read_scan

STEPS = (1, 10)
#: Voxel sizes of the 0.055 T scans, mm (assumed: the headers say 1 everywhere). In plane 1 mm makes the heads 170 to
#: 190 mm long, as heads are; between slices 5 mm fits the anatomy that they pass through.
IN_PLANE, BETWEEN = 1.0, 5.0
#: Voxel to mm, RAS+ (assumed): i runs to the back and k down, seen in the images; which side j runs to is not known.
AFFINE = np.array([[0, IN_PLANE, 0, 0], [-IN_PLANE, 0, 0, 0], [0, 0, -BETWEEN, 0], [0, 0, 0, 1.0]])
#: Voxel size of the 3 T images in plane, mm (assumed): makes these heads as long as on the 0.055 T scans.
HIGH_IN_PLANE = 0.46
#: In front of the head, on every 0.055 T slice.
BACKGROUND: Box = (4, 34, 20, 236)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One patient: begin of the file names, what is seen, the slice (0 is the topmost), boxes at 0.055 T and at 3 T."""

    file: str
    lesion: str
    slice: int
    low: Boxes
    high: Boxes


#: Boxes were chosen by looking at the scan and at the 3 T image, so that each lies in one tissue at 3 T and on the same
#: anatomy in both. The edge boxes of A and C were shortened once after measuring: their ends were not level.
PATIENTS = {
    "A": Patient(
        file="Fig6A",
        lesion="a large dark mass at the back of one hemisphere",
        slice=1,
        low=Boxes(
            white_matter=(106, 126, 99, 112),
            lesion=(154, 180, 86, 104),
            surround=(128, 144, 90, 110),
            edge=(138, 158, 88, 102),
        ),
        high=Boxes(
            white_matter=(200, 245, 155, 182),
            lesion=(307, 364, 123, 161),
            surround=(250, 280, 135, 175),
            edge=(276, 322, 127, 157),
        ),
    ),
    "B": Patient(
        file="Fig6B",
        lesion="a small dark cleft at the side of the frontal lobe, on one side only",
        slice=3,
        low=Boxes(
            white_matter=(156, 170, 87, 103),
            lesion=(96, 103, 172, 186),
            surround=(106, 124, 150, 164),
            edge=(84, 101, 172, 184),
        ),
        high=Boxes(
            white_matter=(325, 352, 118, 150),
            lesion=(189, 204, 302, 332),
            surround=(213, 252, 253, 283),
            edge=(165, 200, 302, 328),
        ),
    ),
    "C": Patient(
        file="SFig6A",
        lesion="a large dark space beside the midline, on one side only",
        slice=0,
        low=Boxes(
            white_matter=(76, 96, 96, 112),
            lesion=(142, 158, 91, 106),
            surround=(112, 130, 92, 110),
            edge=(129, 147, 94, 104),
        ),
        high=Boxes(
            white_matter=(115, 158, 146, 178),
            lesion=(260, 295, 134, 166),
            surround=(194, 234, 135, 174),
            edge=(228, 268, 140, 162),
        ),
    ),
}


def enhanced(folder: Path, work: Path) -> dict[str, list[Path]]:
    """Run `lfmri enhance` with nothing but the number of steps; each patient's scan and results, in that order."""
    scans = []
    for key, patient in PATIENTS.items():
        data = read_scan(folder / f"{patient.file}_055T_T1wGRE.nii.gz").data
        scans.append(work / f"{key}.nii.gz")
        nib.Nifti1Image(data, AFFINE).to_filename(scans[-1])  # type: ignore[no-untyped-call]
    folders = [work / f"steps{steps}" for steps in STEPS]
    for steps, out in zip(STEPS, folders, strict=True):
        command = [sys.executable, "-m", "lfmri", "enhance", *map(str, scans), "-o", str(out), "--steps", str(steps)]
        subprocess.run(command, check=True)
    return {key: [scan, *(out / scan.name for out in folders)] for key, scan in zip(PATIENTS, scans, strict=True)}


def axial(paths: list[Path], number: int) -> list[Array]:
    """One slice of the interpolated scan and of each result, on the results' grid."""
    scan, *results = map(read_scan, paths)
    size = results[0].voxel_size[2]
    volumes = [interpolate(scan.data, scan.affine, voxel_size=size), *(result.data for result in results)]
    return [volume[..., round(number * BETWEEN / size)] for volume in volumes]


def main(folder: Path) -> None:
    """Enhance, measure, draw, write."""
    here = Path(__file__).parent
    pictures, figures = {}, {}
    with tempfile.TemporaryDirectory() as work:
        files = enhanced(folder, Path(work))
        for key, patient in PATIENTS.items():
            low = axial(files[key], patient.slice)
            high = read_scan(folder / f"{patient.file}_3T_T1w.nii.gz").data[..., patient.slice]
            images = [(image, patient.low, IN_PLANE) for image in low] + [(high, patient.high, HIGH_IN_PLANE)]
            pictures[key] = images
            figures[key] = {
                **asdict(patient),
                "slice_correlations": slice_correlations(read_scan(files[key][0]).data, BACKGROUND),
                "background": [background(image, patient.low, BACKGROUND) for image in low],
                "measures": [measure(image, boxes, spacing=spacing) for image, boxes, spacing in images],
            }
        sidecar = read_sidecar(files["A"][1]) or {}
    report = {
        **{name: sidecar[name] for name in ("bundle", "backend", "trained_on")},
        "steps": STEPS,
        "voxel_mm": [IN_PLANE, IN_PLANE, BETWEEN, HIGH_IN_PLANE],
        "background": BACKGROUND,
        "patients": figures,
    }
    draw(pictures, here)
    write_json(here / "lowfield.json", report)
    write_text(here / "lowfield.md", page(json.loads((here / "lowfield.json").read_text())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
