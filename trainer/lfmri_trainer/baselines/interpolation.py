"""Cubic interpolation: the flow's own condition, as it is."""

from collections.abc import Sequence

from lfmri_trainer.baselines.method import Context, Float32Array, Method, SliceMethod


class Interpolation(SliceMethod):
    """What every other method starts from."""

    key = "interpolation"
    title = "interpolation"
    parameters = 0
    budget = "none"
    identity = "interpolation"

    @classmethod
    def prepare(cls, context: Context) -> Sequence[Method]:
        """Nothing is to be made ready."""
        return [cls()]

    def enhance_slices(self, y: Float32Array) -> Float32Array:
        """Return y itself."""
        return y
