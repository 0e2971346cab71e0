"""Opening a bundle: every file's sha256 is checked before anything is loaded from it, the contract's first."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lfmri_runtime.contract import MAX_CONTRACT_BYTES, Contract, parse_contract
from lfmri_runtime.errors import BundleRefused
from lfmri_runtime.files import sha256_file

CONTRACT = "contract.json"
#: The contract's own hash, as `sha256sum` writes and checks it.
SEAL = "contract.sha256"
STEP = "step.onnx"
GOLDEN = "golden.npz"
CARD = "MODEL_CARD.md"
#: The bundle that comes with the package.
BUILT_IN = Path(__file__).parent / "data" / "bundles" / "iqt-cfm-t1w"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: its folder.
        contract: its contract.
        sha256: of contract.json, which holds the hashes of all other files: the bundle's identity.
    """

    path: Path
    contract: Contract
    sha256: str

    def read(self, name: str) -> bytes:
        """Read one of the bundle's files and check the very bytes that are returned.

        Raises:
            BundleRefused: the file is not in the contract, cannot be read, or has changed.
        """
        expected = self.contract.files.get(name)
        if expected is None:
            raise BundleRefused(f"{self.path}: {name} is not in the contract's list of files; export the bundle again")
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleRefused(f"{self.path / name}: {error.strerror}; copy the whole bundle again") from None
        if hashlib.sha256(content).hexdigest() != expected:
            raise _changed(self.path / name)
        return content


def open_bundle(path: Path | None = None) -> Bundle:
    """Open a bundle, or the built-in one, and verify all of its files.

    Args:
        path: the bundle's folder.

    Raises:
        BundleRefused: no such folder or contract, a missing or changed file, a contract that is not understood.
    """
    folder = BUILT_IN if path is None else path
    place = folder / CONTRACT
    try:
        with place.open("rb") as stream:
            content = stream.read(MAX_CONTRACT_BYTES + 1)
    except OSError as error:
        raise BundleRefused(f"{place}: {error.strerror}; expected a bundle that `lfmri export` made") from None
    if len(content) > MAX_CONTRACT_BYTES:
        raise BundleRefused(f"{place} has over {MAX_CONTRACT_BYTES} bytes; expected the file that `lfmri export` wrote")
    try:
        sealed = (folder / SEAL).read_bytes()
    except OSError as error:
        raise BundleRefused(f"{folder / SEAL}: {error.strerror}; copy the whole bundle again") from None
    if sealed != seal_of(content):
        raise BundleRefused(f"{place} does not have the sha256 that {SEAL} gives; copy the bundle again or export it")
    contract = parse_contract(content.decode("utf-8", errors="replace"))
    for name in (STEP, *sorted(contract.files)):
        _verify(folder, name, contract.files.get(name))
    return Bundle(folder, contract, hashlib.sha256(content).hexdigest())


def seal_of(contract: bytes) -> bytes:
    """What contract.sha256 holds beside a contract of these bytes."""
    return f"{hashlib.sha256(contract).hexdigest()}  {CONTRACT}\n".encode()


def _verify(folder: Path, name: str, expected: str | None) -> None:
    if expected is None or Path(name).name != name:
        raise BundleRefused(f"{folder / CONTRACT}: no valid entry for {name!r}; export the bundle again")
    try:
        found = sha256_file(folder / name)
    except OSError as error:
        raise BundleRefused(f"{folder / name}: {error.strerror}; copy the whole bundle again") from None
    if found != expected:
        raise _changed(folder / name)


def _changed(path: Path) -> BundleRefused:
    return BundleRefused(f"{path} does not have the sha256 that its contract gives; copy the bundle again or export it")
