"""The one device of a service: a bundle opened and warmed once, one enhancement at a time for all surfaces."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import ModelSettings
from lfmri_runtime.enhancer import Enhanced, Enhancer
from lfmri_runtime.errors import InputRefused, LfmriError, TryAgainLater

Float32Array = NDArray[np.float32]

#: Scans that may wait for the device; each holds its voxels in memory.
MOST_WAITING = 32


@dataclass(frozen=True, kw_only=True)
class EnhanceOptions:
    """Settings of one enhancement; None takes the configured value.

    Attributes:
        steps: Euler steps.
        samples: draws to average.
        seed: of the noise.
        grid: isotropic or input.
        thick_axis: auto, R, A, S or none.
    """

    steps: int | None = None
    samples: int | None = None
    seed: int | None = None
    grid: str = "input"
    thick_axis: str = "auto"


class Station:
    """Runs enhancements in the order in which they were asked for.

    Args:
        settings: the model to open and its defaults.
        journal: gets one event for each enhancement.

    Attributes:
        enhancer: opened.
        notes: one line for each back end that was tried and not taken, and for a warm-up that was refused.

    Raises:
        BundleRefused: the bundle must not be loaded.
        UsageError, BackendMissing: no such back end, or what is required is not usable here.
    """

    def __init__(self, settings: ModelSettings, journal: Journal) -> None:
        self.settings = settings
        self.journal = journal
        self.enhancer = Enhancer(
            open_bundle(Path(settings.bundle) if settings.bundle else None),
            backend=settings.backend,
            precision=settings.precision or None,
            require=settings.require,
            threads=settings.threads,
        )
        self.notes = tuple(str(trial) for trial in self.enhancer.trials if not trial.passed)
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._places = threading.BoundedSemaphore(MOST_WAITING)

    def warm(self) -> None:
        """Pass one batch of empty slices through the network, so that the first scan does not pay for set-up.

        A back end that refuses their shape, as an engine with a small profile does, is left cold, with a note.
        """
        multiple = self.enhancer.bundle.contract.processing.multiple
        side = max(self.settings.warm_side // multiple, 1) * multiple
        try:
            self._device.submit(self.enhancer.step.warmup, (self.enhancer.batch, 1, side, side)).result()
        except InputRefused as refusal:
            self.notes += (f"not warmed up, so the first scan takes longer: {refusal}",)

    def trouble(self) -> str | None:
        """Why the process should be restarted; None while the device works."""
        step = self.enhancer.step
        return f"the back end {step.name} has failed on its device" if step.broken else None

    def enhance(
        self,
        data: Float32Array,
        affine: NDArray[np.float64],
        *,
        surface: str,
        source: str,
        options: EnhanceOptions,
    ) -> Enhanced:
        """Enhance one scan; waits for its turn.

        Args:
            data: (i, j, k), as `Enhancer.enhance` takes it.
            affine: voxel to mm, RAS+.
            surface: who asks, for the journal.
            source: the input's sha256 or series UID, for the journal.
            options: of this enhancement.

        Raises:
            LfmriError: as `Enhancer.enhance` raises it.
            TryAgainLater: too many scans wait, the service is stopping, or the device failed.
        """
        if not self._places.acquire(blocking=False):
            raise TryAgainLater(f"{MOST_WAITING} scans wait for the device already; send this one again later")
        try:
            chosen = self._resolved(options)
            asked = time.perf_counter()
            try:
                running = self._device.submit(self._run, data, affine, asked, surface, source, chosen)
            except RuntimeError:  # the executor's word for having been shut down
                raise TryAgainLater("the service is stopping; send this scan again later") from None
            return running.result()
        finally:
            self._places.release()

    def close(self) -> None:
        """Finish the running enhancement and what already waits; nothing new is taken."""
        self._device.shutdown(wait=True)

    def _resolved(self, options: EnhanceOptions) -> EnhanceOptions:
        configured = self.settings
        defaults = {"steps": configured.steps or None, "samples": configured.samples, "seed": configured.seed}
        missing = {name: value for name, value in defaults.items() if getattr(options, name) is None}
        return dataclasses.replace(options, **missing)  # type: ignore[arg-type]

    def _run(
        self,
        data: Float32Array,
        affine: NDArray[np.float64],
        asked: float,
        surface: str,
        source: str,
        options: EnhanceOptions,
    ) -> Enhanced:
        waited = round(time.perf_counter() - asked, 4)
        event = {"surface": surface, "source": source, "bundle": self.enhancer.bundle.sha256}
        try:
            enhanced = self.enhancer.enhance(data, affine, **dataclasses.asdict(options))
        except LfmriError as error:
            self.journal.record("refused", **event, reason=str(error))
            raise
        report = {**enhanced.report, "seconds": {"wait": waited, **enhanced.report["seconds"]}}
        self.journal.record("enhanced", **event, **report)
        return dataclasses.replace(enhanced, report=report)
