"""Draw docs/demo.png from what `lfmri demo --out out` left: `python docs/picture.py out`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lfmri_runtime.comparison import compare
from lfmri_runtime.sample import LOW_FIELD, MASK, REFERENCE

#: Screen pixels of one voxel.
ZOOM = 2
#: Standard intensity shown as white.
WHITE = 1.05


def main(out: Path) -> None:
    """Three volumes side by side, a coronal and a sagittal slice each."""
    together = compare(out / "enhanced.nii.gz", reference=REFERENCE, mask=MASK, scan=LOW_FIELD)
    if together.reference is None:
        raise SystemExit("no reference")
    volumes = {"low field, interpolated": together.volumes["interpolation"], "enhanced": together.volumes["enhanced"]}
    volumes["high field"] = together.reference
    rows = []
    for axis, part in ((1, 0.55), (0, 0.42)):
        index = int(together.reference.shape[axis] * part)
        rows.append([np.rot90(np.take(volume, index, axis)) for volume in volumes.values()])
    width = max(image.shape[1] for row in rows for image in row)
    grey = np.concatenate([np.concatenate([_centre(image, width) for image in row], axis=1) for row in rows])
    picture = Image.fromarray((np.clip(grey / WHITE, 0, 1) * 255).astype(np.uint8))
    picture = picture.resize((picture.width * ZOOM, picture.height * ZOOM), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=20)
    for number, name in enumerate(volumes):
        draw.text((number * width * ZOOM + 12, 8), name, fill=255, font=font)
    picture.save(Path(__file__).with_name("demo.png"), optimize=True)


def _centre(image: np.ndarray, width: int) -> np.ndarray:
    missing = width - image.shape[1]
    return np.pad(image, ((0, 0), (missing // 2, missing - missing // 2)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
