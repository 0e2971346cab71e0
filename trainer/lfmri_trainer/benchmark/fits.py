"""What each fitted method was fitted on and with: methods are compared fairly only where that is alike."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lfmri_runtime.page.article import Section, Table
from lfmri_trainer.baselines.fitted import Fitted
from lfmri_trainer.baselines.fitting import NetworkSettings
from lfmri_trainer.baselines.method import Method
from lfmri_trainer.subjects import person_of

#: Digits of a hash that a table shows.
_SHOWN = 16


def fits_section(methods: Sequence[Method]) -> Iterator[Section]:
    """One table; nothing where no method was fitted."""
    fitted = [method for method in methods if isinstance(method, Fitted)]
    if not fitted:
        return
    text = (
        "People and presets are those of the simulated scans that a method learned from, scans that its starting "
        "weights learned from included; two methods with the same hash of pairs were fitted on the same scans. "
        "Settings that are not named are the usual ones. A network with far fewer steps than the usual "
        f"{NetworkSettings.steps:,} is not done learning: its row says what the budget gives, and little of the method."
    )
    head = ("method", "people", "presets", "pairs, SHA-256", "settings", "file, SHA-256")
    rows = tuple(tuple((cell, False) for cell in _row(method)) for method in fitted)
    yield Section(heading="Fits", paragraphs=(text,), table=Table(head=head, rows=rows))


def _row(method: Fitted) -> tuple[str, ...]:
    about = method.about
    assert about is not None, "a method that is compared is fitted"
    usual = method.Settings()
    changed = {key: value for key, value in about.settings.items() if value != getattr(usual, key)}
    return (
        method.title,
        str(len({person_of(name) for name in about.subjects})),
        ", ".join(about.presets) or "not kept",
        about.data[:_SHOWN],
        ", ".join(f"{key}={_shown(value)}" for key, value in changed.items()) or "-",
        method.identity.split()[-1][:_SHOWN],
    )


def _shown(value: object) -> str:
    """Of a path only the last part, for the others say where somebody works."""
    return Path(value).name if isinstance(value, str) else str(value)
