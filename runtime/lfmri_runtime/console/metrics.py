"""Prometheus metrics, made from the journal's events."""

from typing import Any

from lfmri_runtime.errors import missing_extra

#: Upper bounds of the stages' histogram, seconds: from a header's copy to a large volume in many steps.
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Metrics:
    """Counts events and times stages in a registry of its own.

    Raises:
        BackendMissing: prometheus-client is not installed.
    """

    def __init__(self) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise missing_extra("mrd", "prometheus-client") from None
        self._render = prometheus.generate_latest
        self.content_type = prometheus.CONTENT_TYPE_PLAIN_0_0_4
        self._registry = prometheus.CollectorRegistry()
        self._events = prometheus.Counter(
            "lfmri_events", "Events by kind and surface.", ("event", "surface"), registry=self._registry
        )
        self._stages = prometheus.Histogram(
            "lfmri_stage_seconds", "Seconds of each stage.", ("stage",), registry=self._registry, buckets=BUCKETS
        )
        self._ready = prometheus.Gauge("lfmri_ready", "1 when /ready says yes.", registry=self._registry)
        prometheus.ProcessCollector(registry=self._registry)

    def record(self, event: str, fields: dict[str, Any]) -> None:
        """Count one event and take its stages' times."""
        self._events.labels(event, fields.get("surface", "service")).inc()
        for stage, seconds in fields.get("seconds", {}).items():
            self._stages.labels(stage).observe(seconds)

    def render(self, *, ready: bool) -> bytes:
        """The metrics as Prometheus' text format 0.0.4."""
        self._ready.set(int(ready))
        return self._render(self._registry)
