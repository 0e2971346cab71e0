"""Where what can be made again is kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lfmri_runtime import cache
from lfmri_runtime.cache import cache_folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A user whom the system gives no home, as a container may have."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache._of_this_process.cache_clear()
    yield
    cache._of_this_process.cache_clear()


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_has_a_cache_that_is_nobody_elses(tmp_path: Path) -> None:
    (tmp_path / "lfmri").mkdir()
    folder = cache_folder()
    assert folder == cache_folder(), "one a process"
    assert folder.parent == tmp_path
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o077 == 0
