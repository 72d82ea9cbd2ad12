"""Compare settings over prompts in a report, from Python, and read its results.

    python examples/compare_settings.py

The same on the command line, without the small size:

    dittools report --weights embedded --sweep method=svg,adaspa --sweep sparsity=0.5,0.8 --output report

`report/report.html` is the page to look at. The command can be stopped and given again: it goes on where it was.
"""

import csv
import sys
from pathlib import Path

from dittools.cli.main import main

SMALL = "--frames 17 --height 128 --width 128 --steps 3 --fewer-steps 2 --prompts builtin:1 --repeats 1"
SWEEPS = "--sweep method=svg --sweep sparsity=0.5,0.8"

code = main(["report", "--weights", "embedded", *SMALL.split(), *SWEEPS.split(), "--output", "report"])
if code:
    sys.exit(code)

with Path("report", "summary.csv").open(newline="", encoding="utf-8") as file:
    lines = {line["setting"]: line for line in csv.DictReader(file)}
for setting, line in lines.items():
    print(f"{setting:24} {line['speedup'] or '-':>6.6} times as fast as dense, PSNR {line['psnr'] or '-':.5}")
