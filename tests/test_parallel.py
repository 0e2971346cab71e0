"""Jobs in processes of their own: what is left when one of them is killed."""

import os
import signal
from functools import partial

import pytest

from lfmri_runtime.errors import TryAgainLater
from lfmri_trainer.parallel import in_processes


def _end() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def test_a_killed_process_is_told_in_one_line() -> None:
    with pytest.raises(TryAgainLater, match=r"one of 1 processes was killed, .*: run it again with fewer --workers"):
        in_processes([partial(_end)], workers=1, ended=lambda _: None)
