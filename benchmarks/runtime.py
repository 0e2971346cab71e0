"""What the runtime costs beside its network: `python benchmarks/runtime.py`.

Prints, measured in one run on this machine:

- overhead: `lfmri enhance` of the sample with one step (reading and writing included) over the bare sum of its ONNX
  Runtime calls, run in turn on arrays of the same shapes; the median of the paired ratios;
- memory: peak resident memory of a process that enhances a volume of 256^3 voxels with one step;
- start: seconds of `import lfmri_runtime` and of `lfmri --help`, the median of fresh processes.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lfmri_runtime.backends import open_backend
from lfmri_runtime.enhancer import BATCH, Enhancer
from lfmri_runtime.geometry import WorkingGrid, thick_axis_of
from lfmri_runtime.job import Outputs, enhance_file
from lfmri_runtime.sample import LOW_FIELD
from lfmri_runtime.slices import batches, padded_shape, plane_normals, slices_of
from lfmri_runtime.volume import read_scan

#: Side of the volume whose peak memory is measured, voxels.
SIDE = 256


def bare_calls(enhancer: Enhancer) -> float:
    """Seconds of the network calls of the sample alone, on zeros of the same shapes."""
    scan = read_scan(LOW_FIELD)
    processing = enhancer.bundle.contract.processing
    grid = WorkingGrid.of_scan(scan.data.shape, scan.affine, voxel_size=processing.voxel_size)
    thick = thick_axis_of(grid.scan_spacing)
    volume = np.zeros(padded_shape(grid.shape, processing.multiple), dtype=np.float32)
    start = time.perf_counter()
    for normal in plane_normals(thick):
        stack = slices_of(volume, normal=normal, thick_axis=thick)
        for part in batches(grid.shape[normal], BATCH):
            images = np.ascontiguousarray(stack[part])[:, None]
            enhancer.step(images, images, 0.0, 1.0)
    return time.perf_counter() - start


def overhead(rounds: int) -> None:
    """Print the paired ratios of a whole enhancement to its bare calls."""
    enhancer = Enhancer()
    open_backend(enhancer.bundle).warmup((BATCH, 1, SIDE, SIDE))
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            bare = bare_calls(enhancer)
            start = time.perf_counter()
            enhance_file(
                enhancer, LOW_FIELD, Outputs(Path(folder) / "out.nii.gz"), progress=lambda done, total: None, steps=1
            )
            whole = time.perf_counter() - start
            ratios.append(whole / bare)
            print(f"enhance {whole:.2f} s, bare calls {bare:.2f} s, ratio {whole / bare:.3f}")
    print(f"overhead: median ratio {statistics.median(ratios):.3f} over {rounds} rounds")


def memory() -> None:
    """Print the peak memory of a process of its own."""
    code = (
        "import numpy as np; from lfmri_runtime import Enhancer; "
        f"x = np.random.default_rng(0).gamma(2, 100, ({SIDE},) * 3).astype(np.float32); "
        "Enhancer().enhance(x, np.eye(4), steps=1, thick_axis='S')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print(f"memory: {peak:.2f} GiB at most for {SIDE}^3 voxels, one step")


def start_up(rounds: int) -> None:
    """Print how long importing and help take."""
    for label, command in (
        ("import lfmri_runtime", [sys.executable, "-c", "import lfmri_runtime"]),
        ("lfmri --help", [sys.executable, "-m", "lfmri", "--help"]),
    ):
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
        print(f"start: {label} {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each measurement")
    rounds = parser.parse_args().rounds
    start_up(rounds)
    overhead(rounds)
    memory()
