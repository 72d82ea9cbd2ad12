"""A child that does as its job says: for `test_supervise.py`."""

import os
import time
from pathlib import Path

from dittools.kernels.supervise import Broken, serve


def handle(job, at):
    for what in job["does"]:
        if what in job.get("without", {}):
            continue
        at(what)
        if what.startswith("/"):
            Path(what).write_text(str(os.getpid()))
        if what == "hang":
            time.sleep(1000)
        if what == "crash":
            os.abort()
        if what == "break":
            raise Broken("an illegal address")
        if what == "fault":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if what == "raise":
            raise ValueError("not\nthis")
        print("noise of a library")
    return {"name": job["name"], "without": job.get("without", {})}


if __name__ == "__main__":
    serve(handle)
