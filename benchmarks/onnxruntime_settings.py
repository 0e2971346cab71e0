"""Settings of ONNX Runtime on the CPU, one interleaved run: `python benchmarks/onnxruntime_settings.py --threads 2`.

Prints milliseconds a slice and Euler step of the built-in model for each setting: the least, the median, and the
median of the paired ratios to the library's defaults with the same batch. The defaults stay unless a setting is clearly
below 1.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import onnxruntime

from lfmri_runtime.backends.onnxruntime import LOG_ERRORS
from lfmri_runtime.bundle import STEP, open_bundle

#: A slice of a head on the working grid, 1 mm.
SIDES = (192, 160)
BATCHES = (1, 2, 4)
SETTINGS = ("defaults", "static shape", "no arena", "no spinning", "no cast chains")


def open_session(setting: str, batch: int, threads: int) -> Any:
    """A session with one setting changed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_ERRORS
    if setting == "static shape":
        for name, length in zip(("batch", "8*h", "8*w"), (batch, *SIDES), strict=True):
            options.add_free_dimension_override_by_name(name, length)
    options.enable_cpu_mem_arena = setting != "no arena"
    if setting == "no spinning":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if setting == "no cast chains":
        options.add_session_config_entry("session.enable_cast_chain_elimination", "1")
    return onnxruntime.InferenceSession(open_bundle().read(STEP), options, providers=["CPUExecutionProvider"])


def main(rounds: int, threads: int) -> None:
    """Run every setting in turn, `rounds` times and once before that does not count."""
    cases = [(setting, batch) for batch in BATCHES for setting in SETTINGS]
    seconds: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    sessions = {(setting, batch): open_session(setting, batch, threads) for setting, batch in cases}
    for number in range(rounds + 1):
        for case in cases if number % 2 else reversed(cases):
            image = np.full((case[1], 1, *SIDES), 0.5, np.float32)
            times = np.zeros(case[1], np.float32)
            start = time.perf_counter()
            sessions[case].run(None, {"x_t": image, "y": image, "t": times, "dt": times + 1})
            if number:
                seconds[case].append((time.perf_counter() - start) / case[1])
    for setting, batch in cases:
        found, usual = seconds[setting, batch], seconds["defaults", batch]
        ratio = statistics.median(a / b for a, b in zip(found, usual, strict=True))
        least, median = 1e3 * min(found), 1e3 * statistics.median(found)
        print(f"batch {batch}, {setting:14s}: least {least:6.1f}, median {median:6.1f} ms, ratio {ratio:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds that count")
    parser.add_argument("--threads", type=int, default=0, help="of the sessions; 0 takes all cores")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.threads)
