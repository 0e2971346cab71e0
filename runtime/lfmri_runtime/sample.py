"""The sample scan that comes with the package: simulated low field, its high-field original and a brain mask.

`data/sample/README.md` says what they are made from and how.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent / "data" / "sample"
LOW_FIELD = _FOLDER / "lowfield.nii.gz"
REFERENCE = _FOLDER / "highfield.nii.gz"
MASK = _FOLDER / "mask.nii.gz"
