"""Cubic interpolation: the flow's own condition as it is, and with its tissue means brought to the standard ones."""

from collections.abc import Sequence

from lfmri_runtime.contract import render
from lfmri_runtime.intensity import HighFieldStandard
from lfmri_trainer.baselines.method import Context, Float32Array, Method, SliceMethod, VolumeMethod


class Interpolation(SliceMethod):
    """What every other method starts from."""

    key = "interpolation"
    title = "interpolation"
    note = (
        "the network's own input: the scan on the working grid by cubic splines, divided by the one number that brings "
        "its foreground to a brain's mean on the standard scale; nothing is fitted to the reference."
    )
    parameters = 0
    budget = "-"
    identity = "interpolation"

    @classmethod
    def prepare(cls, context: Context) -> Sequence[Method]:
        """Nothing is to be made ready."""
        return [cls()]

    def enhance_slices(self, y: Float32Array) -> Float32Array:
        """Return y itself."""
        return y


class MatchedInterpolation(VolumeMethod):
    """Interpolation in the standard contrast: how much of a gain is contrast alone.

    Args:
        standard: where grey and white matter lie.
    """

    key = "matched"
    title = "interpolation, matched"
    note = "the scan's own means of grey and white matter, found above Otsu's threshold, come to the standard ones."
    parameters = 0
    budget = "-"

    def __init__(self, standard: HighFieldStandard) -> None:
        self.standard = standard
        self.identity = f"matched {render(standard)}"

    @classmethod
    def prepare(cls, context: Context) -> Sequence[Method]:
        """Take the contract's standard."""
        return [cls(context.processing.high_field)]

    def enhance_volume(self, y: Float32Array) -> Float32Array:
        """Map the volume. Raises InputRefused where it does not hold three classes of tissue."""
        return self.standard.apply(y)
