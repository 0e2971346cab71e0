"""Every error that lfmri raises on purpose, with the exit code that the command line gives it.

    LfmriError
    |-- UsageError          2  options that do not go together, an unknown preset
    |-- InputRefused        3  a scan, a folder of subjects or a table of pairs that cannot be used
    |-- BundleRefused       4  a bundle, a model file, a run or an engine that must not be loaded
    |-- BackendMissing      5  a back end or an optional package that is not here
    `-- TryAgainLater       6  full disk, output not writable, a lock held by another process

A message is one line that says what was found, what was expected and what to do. 0 means done; 130 means
interrupted from the keyboard.
"""


class LfmriError(Exception):
    """Base of the tree; never raised itself."""

    exit_code = 1


class UsageError(LfmriError):
    """Options that do not go together, or a name that is not known."""

    exit_code = 2


class InputRefused(LfmriError):
    """Input data that cannot be used."""

    exit_code = 3


class BundleRefused(LfmriError):
    """A bundle, a model file, a run or an engine that must not be loaded."""

    exit_code = 4


class BackendMissing(LfmriError):
    """A back end or an optional package that is not installed or not usable here."""

    exit_code = 5


class TryAgainLater(LfmriError):
    """Nothing is wrong with the input: the machine could not finish now."""

    exit_code = 6


def missing_extra(extra: str, package: str) -> BackendMissing:
    """Say which optional package is missing and the line that installs it."""
    return BackendMissing(f"{package} is not installed; it comes with: pip install 'lfmri[{extra}]'")
