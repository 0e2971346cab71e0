"""The load script on a few scans: every surface answers all of them, and memory does not grow with their number."""

import re
import subprocess
import sys
from pathlib import Path

from .bundles import MakeBundle

ROOT = Path(__file__).parents[1]
SCANS = 40
#: KiB a scan; a leak of one scan's voxels would be 100, and the first scans' pools are settled by then.
MOST_GROWTH = 60


def test_a_load_on_every_surface_leaves_memory_flat(make_bundle: MakeBundle) -> None:
    command = [sys.executable, ROOT / "benchmarks/console.py", "--scans", str(SCANS), "--bundle", make_bundle()]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    slopes = dict(re.findall(r"^(\w+): 40 scans; .* slope (-?[\d.]+) KiB a scan$", done.stdout, re.MULTILINE))
    assert list(slopes) == ["folder", "mrd", "dicom"]
    assert max(map(float, slopes.values())) < MOST_GROWTH, done.stdout
    stages = re.findall(r"^  (\w+) +p50 +([\d.]+) s +p95 +([\d.]+) s$", done.stdout, re.MULTILINE)
    assert all(float(p50) <= float(p95) for _, p50, p95 in stages)
    assert {"receive", "read", "wait", "network", "write", "send", "assemble", "encode"} <= {
        name for name, *_ in stages
    }
    assert re.search(r"^  shell over enhancement: 0\.\d+$", done.stdout, re.MULTILINE)
