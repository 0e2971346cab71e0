"""What each label of a whole-head map is, and how bright it may be in a T1w scan (all ranges assumed).

Labels are FreeSurfer's inside the brain, and 502 to 530 outside it, as SynthSeg's training maps have them
(Billot et al. 2023); what those stand for was read from where they lie.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """Labels that share one intensity.

    Attributes:
        labels: in the map.
        level: range of the mean intensity, where white matter is 1.
        texture: standard deviation within the tissue, relative to its mean.
        kind: the tissue map that it belongs to; None outside the brain.
    """

    labels: tuple[int, ...]
    level: tuple[float, float]
    texture: float
    kind: Literal["gm", "wm", "csf"] | None = None


TISSUES = {
    "air": Tissue(labels=(0,), level=(0.0, 0.02), texture=0.3),
    "white matter": Tissue(labels=(2, 41, 7, 46), level=(1.0, 1.0), texture=0.03, kind="wm"),
    "brain stem": Tissue(labels=(16,), level=(0.90, 1.0), texture=0.04, kind="wm"),
    "ventral diencephalon": Tissue(labels=(28, 60, 85), level=(0.80, 0.95), texture=0.05, kind="wm"),
    "white lesions": Tissue(labels=(25, 57, 77), level=(0.65, 0.90), texture=0.06, kind="wm"),
    "cortex": Tissue(labels=(3, 42), level=(0.63, 0.69), texture=0.07, kind="gm"),
    "cerebellar cortex": Tissue(labels=(8, 47), level=(0.62, 0.74), texture=0.08, kind="gm"),
    "thalamus": Tissue(labels=(10, 49), level=(0.76, 0.88), texture=0.05, kind="gm"),
    "striatum": Tissue(labels=(11, 12, 26, 50, 51, 58), level=(0.67, 0.77), texture=0.04, kind="gm"),
    "pallidum": Tissue(labels=(13, 52), level=(0.82, 0.94), texture=0.04, kind="gm"),
    "hippocampus and amygdala": Tissue(labels=(17, 18, 53, 54), level=(0.62, 0.72), texture=0.06, kind="gm"),
    "ventricles": Tissue(labels=(4, 5, 14, 15, 43, 44, 72), level=(0.12, 0.26), texture=0.08, kind="csf"),
    "outer CSF": Tissue(labels=(24,), level=(0.14, 0.32), texture=0.20, kind="csf"),
    "choroid plexus and vessels": Tissue(
        labels=(30, 62, 136, 137, 163, 164), level=(0.3, 0.6), texture=0.15, kind="csf"
    ),
    "vessels of the neck": Tissue(labels=(502,), level=(0.2, 1.0), texture=0.2),
    "eyes": Tissue(labels=(506,), level=(0.12, 0.30), texture=0.08),
    "soft tissue": Tissue(labels=(507,), level=(0.35, 0.70), texture=0.30),
    "orbit": Tissue(labels=(508,), level=(0.4, 0.9), texture=0.15),
    "mucosa": Tissue(labels=(509,), level=(0.4, 0.9), texture=0.2),
    "skin": Tissue(labels=(511,), level=(0.6, 1.2), texture=0.2),
    "spinal cord": Tissue(labels=(512,), level=(0.8, 1.0), texture=0.06),
    "sinuses and dura": Tissue(labels=(514,), level=(0.2, 0.8), texture=0.2),
    "bone": Tissue(labels=(515,), level=(0.06, 0.22), texture=0.3),
    "marrow": Tissue(labels=(516,), level=(0.5, 1.2), texture=0.25),
    "pituitary": Tissue(labels=(530,), level=(0.5, 0.9), texture=0.1),
}
#: The distance of grey from white matter is multiplied by a factor drawn from this range, one for all of a subject.
CONTRAST = (0.65, 1.25)
#: One more than the largest label that a map may hold.
LABEL_LIMIT = 1 + max(label for tissue in TISSUES.values() for label in tissue.labels)
