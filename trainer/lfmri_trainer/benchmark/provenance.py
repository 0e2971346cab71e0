"""What a benchmark was made by and from: the command, the commit, and the data's hashes."""

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.files import sha256_file
from lfmri_trainer.benchmark.cases import kinds
from lfmri_trainer.benchmark.run import SetResults
from lfmri_trainer.simulation.pairs import TABLE, low_path, subject_path

#: Digits of a hash that a table shows.
_SHOWN = 16


def command_line(words: Sequence[str]) -> str:
    """The command as it was typed; of paths only the last part, for the others say where somebody works."""
    return shlex.join(["lfmri", *(_shortened(word) for word in words)])


def _shortened(word: str) -> str:
    """Each value after a comma or a sign of equality, `--fit METHOD:initial=RUN,steps=20` for example."""
    parts = (part.rpartition("=") for part in word.split(","))
    return ",".join(f"{option}{sign}{Path(value).name if '/' in value else value}" for option, sign, value in parts)


def maker() -> str:
    """Commit and machine, as a result keeps them: whose scores and seconds it holds."""
    return f"{commit()} on {platform.machine()} with {os.cpu_count()} cores"


def commit() -> str:
    """The commit of the code that runs, `+` where it was changed since; the version where there is no repository."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        tracked = _git(here, "ls-files", Path(__file__).name)
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return f"lfmri {version('lfmri')}"
    return f"{head}{' with changes' if changed else ''}" if tracked else f"lfmri {version('lfmri')}"


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def hashes(pairs: Path, bundle: Bundle, every: Sequence[SetResults]) -> list[tuple[str, str]]:
    """Name and SHA-256 (its first digits) of the table of pairs, the bundle, and every scored volume."""
    found = {TABLE: pairs / TABLE}
    for results in every:
        for scan in results.scans:
            found[f"{scan.pair.pair}, low field"] = low_path(pairs, scan.pair)
            for kind in kinds(pairs, scan.pair):
                found[f"{scan.pair.subject}, {kind}"] = subject_path(pairs, scan.pair.subject, kind)
    shown = [(name, sha256_file(path)[:_SHOWN]) for name, path in found.items()]
    return [(f"bundle {bundle.contract.name} {bundle.contract.version}", bundle.sha256[:_SHOWN]), *shown]
