"""A child that proves, or does not, as it is told on its command line: for `test_first_use.py`.

    python proving_child.py FILE HOW

It adds its device to FILE, by which its starts are counted.
"""

import os
import signal
import sys
import time
from pathlib import Path

from dittools.kernels.supervise import serve


def handle(job, at):
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{job['kernel']} {job['device']}\n")
    at(job["kernel"])
    how = sys.argv[2]
    if job.get("without"):
        raise ValueError(f"{job['kernel']}: {job['without'][job['kernel']]}")
    if how == "hang":
        time.sleep(1000)
    if how == "crash":
        os.abort()
    if how == "wrong":
        raise ValueError("RMS error 1.0e+00")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "no compiler":
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    if how == "full":
        raise RuntimeError("OutOfMemoryError: CUDA out of memory")
    time.sleep(0.5 if how == "slowly" else 0)
    gain = 0.8 if how == "slower" else 1.4
    return {"cases": 3, "speedup_over_triton": {"raster": 1.2, "ordered": gain}}


if __name__ == "__main__":
    if sys.argv[2] == "no imports":
        sys.exit(1)
    serve(handle)
