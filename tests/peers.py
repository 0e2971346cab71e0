"""Programs and data that some tests compare with, and that a machine may lack."""

import os

import pytest


def require_peer(name: str, found: bool) -> None:
    """Skip the test where the peer is absent, and fail it instead where CI is set: there nothing may be skipped."""
    if found:
        return
    reason = f"{name} is not installed here; the test compares with it"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
