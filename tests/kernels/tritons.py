"""Other versions of Triton than the installed one, each in a folder that goes in front of it: no torch comes along.

`fetched` has pip load a wheel, and unpacks what compiling for NVIDIA cards needs of it: 190 to 290 MB are loaded and
560 to 660 MB unpacked for each version, which is gone again with the folder.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

# The oldest that Gluon's kernels are for, and the newest patch of each after it.
VERSIONS = ("3.6.0", "3.7.1", "3.8.0", "3.9.0")
# Other backends, profilers and debuggers.
LEFT_OUT = re.compile(r"/cupti|libproton|/plugins/|/instrumentation/|FileCheck|libtriton_amd|backends/amd/")
LOADING_SECONDS = 240


class Unfetched(Exception):
    """A version that could not be loaded here, and why."""


def fetched(version, folder):
    """Bring this version into a folder, as it is imported from there. Raises Unfetched."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    try:
        done = subprocess.run(
            [*command, f"triton=={version}"], capture_output=True, text=True, timeout=LOADING_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unfetched(f"pip took more than {LOADING_SECONDS} s") from None
    wheels = list(Path(folder).glob("triton-*.whl"))
    if done.returncode != 0 or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Unfetched(said[-1] if said else f"pip ended with code {done.returncode}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for part in wheel.infolist():
            if not LEFT_OUT.search("/" + part.filename):
                path = wheel.extract(part, folder)
                if "/bin/" in path:
                    os.chmod(path, 0o755)
    wheels[0].unlink()
    # Backends that are named but not there would be imported.
    for entries in Path(folder).glob("triton-*.dist-info/entry_points.txt"):
        lines = entries.read_text().splitlines()
        entries.write_text("".join(f"{line}\n" for line in lines if not line.startswith("amd")))
