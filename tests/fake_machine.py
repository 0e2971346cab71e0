"""A machine with a fake GPU and a fake TensorRT."""

import gc
import sys
from pathlib import Path
from typing import Any

import pytest

from lfmri_export.engine import export_engine
from lfmri_runtime.backends.tensorrt import TensorRtStep, cuda
from lfmri_runtime.backends.tensorrt.identity import parse_profile
from lfmri_runtime.bundle import Bundle

from .fake_cuda import FakeDriver
from .fake_tensorrt import fake_tensorrt

PROFILE = "1x8x8,2x16x16,4x192x192"


class Machine:
    """A fake GPU, TensorRT 10, 11 or RTX, and a cache of engines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bundle: Bundle, cache: Path, version: str) -> None:
        self.bundle, self.cache = bundle, cache
        self.driver = FakeDriver()
        self.trt = fake_tensorrt(self.driver, version)
        monkeypatch.setattr(cuda, "load_driver", lambda: self.driver)
        monkeypatch.setitem(sys.modules, self.trt.__name__, self.trt)

    def build(self, **options: Any) -> Path:
        profile = parse_profile(PROFILE, multiple=8)
        settings = {"cache": self.cache, "say": lambda line: None, "progress": lambda done, total: None, **options}
        return export_engine(self.bundle, profile, **settings)[0]

    def open(self) -> TensorRtStep:
        return TensorRtStep(self.bundle, cache=self.cache)

    def left(self) -> list[str]:
        if self.trt.state.alive:  # in a cycle, perhaps
            gc.collect()
        return self.driver.left() + [type(thing).__name__ for thing in self.trt.state.alive]
