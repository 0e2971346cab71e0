"""One client's session: what comes is collected into series, a whole series is enhanced, and the answers leave."""

import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from lfmri_runtime.console.settings import MrdSettings, OutputSettings
from lfmri_runtime.console.station import EnhanceOptions, Station
from lfmri_runtime.errors import InputRefused, LfmriError, TryAgainLater, UsageError
from lfmri_runtime.mrd.answer import answers
from lfmri_runtime.mrd.channel import Channel
from lfmri_runtime.mrd.geometry import ReconSpace, orientation_of, place, recon_space
from lfmri_runtime.mrd.image import Image
from lfmri_runtime.mrd.parameters import Parameters, from_header, from_json, from_text, updated
from lfmri_runtime.mrd.volume import digest, is_magnitude, reason_to_pass, stack, volumes
from lfmri_runtime.mrd.wire import Id, close_message, image_message, read_message, text_message

#: Most that a client's unfinished series may hold, bytes, and what an image costs beside its content.
SERIES_BYTES = 256 << 20
IMAGE_BYTES = 2048


class Session:
    """Speaks MRD with one client until it closes, fails, or is too slow.

    Args:
        channel: the client's; closed at the end of `run`.
        output: label and whether the uncertainty leaves.
        station: enhances.
        settings: the longest waits.
    """

    def __init__(self, channel: Channel, *, settings: MrdSettings, output: OutputSettings, station: Station) -> None:
        self.channel = channel
        self.output = output
        self.station = station
        self.settings = settings
        self.parameters = Parameters()
        self.space: ReconSpace | None = None
        self._images: list[Image] = []
        self._bytes = 0
        self._receiving = 0.0
        self._recorded = False
        self._warned: set[str] = set()
        self._leaving: deque[tuple[int, float, dict[str, Any]]] = deque()

    @property
    def busy(self) -> bool:
        """Whether a series is half received."""
        return bool(self._images)

    def run(self) -> None:
        """Serve the client to its end; what is wrong is told to it. Only faults of our own leave this method."""
        try:
            try:
                self._serve()
            except LfmriError as error:
                self._fail("refused", str(error))
            except MemoryError:
                self._fail("failed", "not enough memory for this scan; send it again later, or less at once")
            except BaseException:
                self._fail("failed", "an internal error, see the service's log")
                raise
        except OSError as error:
            self.station.journal.record("failed", surface="mrd", reason=f"the client is gone ({error.strerror})")
        finally:
            self.channel.close()

    def _serve(self) -> None:
        while True:
            self.channel.make_room(seconds=self.settings.timeout_seconds)
            try:
                message, content = read_message(
                    self.channel, idle=self.settings.idle_seconds, seconds=self.settings.timeout_seconds
                )
            except EOFError:
                if self._images:
                    raise InputRefused(
                        f"the stream ended after {len(self._images)} images without a close message; expected one: the "
                        "series may not be whole and was not enhanced"
                    ) from None
                break
            if message is Id.CLOSE:
                break
            self._take(message, content)
            self._note_sent()
        self._finish_series()
        self.channel.send(close_message())
        self.channel.flush(seconds=self.settings.timeout_seconds)
        self._note_sent()

    def _take(self, message: Id, content: str | Image | None) -> None:
        if isinstance(content, Image):
            self._receiving += time.perf_counter() - self.channel.began
            self._take_image(content)
        elif message in (Id.CONFIG_FILE, Id.CONFIG_TEXT) and content:
            self.parameters = updated(self.parameters, from_text(content))
        elif message is Id.HEADER and content:
            self.parameters = updated(self.parameters, from_header(content))
            self.space = recon_space(content)
        elif message is Id.TEXT and content:
            self.parameters = updated(self.parameters, from_json(content))

    def _take_image(self, image: Image) -> None:
        if not is_magnitude(image.header):
            self._send_back([image])
            return
        if self._images and image.header.series != self._images[0].header.series:
            self._finish_series()
        self._bytes += len(image.pixels) + len(image.attributes) + IMAGE_BYTES
        if self._bytes > SERIES_BYTES:
            raise InputRefused(f"a series of over {SERIES_BYTES >> 20} MiB; expected less: send its volumes as series")
        self._images.append(image)
        if image.header.matrix_size[2] > 1:  # a 3-D image is whole
            self._finish_series()

    def _finish_series(self) -> None:
        images, self._images, self._bytes = self._images, [], 0
        stacks = len({orientation_of(image.header) for image in images})
        for volume in volumes(images):
            reason = reason_to_pass(volume, stacks=stacks)
            if reason is None:
                self._enhance(volume)
            else:
                self._warn([f"series {volume[0].header.series} goes back as it came: {reason}"])
                self.station.journal.record("passed-by", surface="mrd", source=digest(volume), reason=reason)
                self._send_back(volume)

    def _enhance(self, volume: list[Image]) -> None:
        started = time.perf_counter()
        asked = self.parameters
        uncertainty = asked.uncertainty or self.output.uncertainty
        if uncertainty and (asked.samples or self.station.settings.samples) < 2:
            raise UsageError("uncertainty needs several draws; expected the parameter samples of at least 2")
        placement = place(volume, self.space, asked.voxel_size)
        data = stack(volume, placement.order)
        source = digest(volume)
        assembled = time.perf_counter()
        options = EnhanceOptions(
            steps=asked.steps or None,
            samples=asked.samples or None,
            seed=None if asked.seed == -1 else asked.seed,
            grid="input",
            thick_axis=asked.thickAxis,
        )
        try:
            enhanced = self.station.enhance(data, placement.affine, surface="mrd", source=source, options=options)
        except LfmriError as error:
            self._recorded = not isinstance(error, TryAgainLater)  # the station records what its core refuses
            raise
        done = time.perf_counter()
        self._warn([*placement.notes, *enhanced.notes])
        if asked.sendOriginal:
            self._send_back(volume)
        bundle, label = self.station.enhancer.bundle, self.output.label
        for content in answers(volume, placement.order, enhanced, bundle=bundle, label=label, uncertainty=uncertainty):
            self.channel.send(*image_message(content))
        seconds = {
            "receive": self._receiving,
            "assemble": assembled - started,
            "enhance": done - assembled,
            "encode": time.perf_counter() - done,
        }
        self._receiving = 0.0
        event = {"surface": "mrd", "source": source, "images": len(volume), "seconds": seconds}
        self._leaving.append((self.channel.queued, time.perf_counter(), event))

    def _send_back(self, images: Iterable[Image]) -> None:
        for image in images:
            self.channel.send(*image_message(image.parts()))

    def _warn(self, notes: Iterable[str]) -> None:
        """Tell the client what had to be guessed or was left out; each thing once a session."""
        for note in notes:
            if note not in self._warned:
                self._warned.add(note)
                self.channel.send(text_message(f"WRN lfmri: {note}"))

    def _note_sent(self) -> None:
        """Record what the client's machine has taken whole; never before."""
        while self._leaving and self._leaving[0][0] <= self.channel.sent:
            _, queued, event = self._leaving.popleft()
            seconds = {**event["seconds"], "send": time.perf_counter() - queued}
            rounded = {stage: round(value, 4) for stage, value in seconds.items()}
            self.station.journal.record("sent", **{**event, "seconds": rounded})

    def _fail(self, event: str, reason: str) -> None:
        self.channel.send(text_message(f"ERR lfmri: {reason}"), close_message())
        with suppress(InputRefused):  # a client that does not read does not learn why
            self.channel.flush(seconds=self.settings.timeout_seconds)
        if not self._recorded:
            self.station.journal.record(event, surface="mrd", reason=reason)
