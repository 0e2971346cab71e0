"""Machines that are less than this one."""

from typing import Any


class MaskedCore:
    """An OpenVINO whose CPU has no such arithmetic, or that runs in another precision than it was told."""

    def __init__(self, core: Any, *, capabilities: list[str], hint: str | None = None) -> None:
        self._core = core
        self._capabilities = capabilities
        self._hint = hint

    def get_property(self, device: str, key: str) -> Any:
        return self._capabilities if key == "OPTIMIZATION_CAPABILITIES" else self._core.get_property(device, key)

    def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:
        changed = {"INFERENCE_PRECISION_HINT": self._hint} if self._hint else {}
        return self._core.compile_model(model, device, settings | changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)
