"""Write docs/pipelines.md: every pipeline class of nine families, and what it does with dittools on.

python -m dittools.tools.pipelines_page           write the page
python -m dittools.tools.pipelines_page --test    draw with a tiny random pipeline of each class, keep the results, and
                                                  write the page
python -m dittools.tools.pipelines_page --check   exit with 1 where the page, the results and diffusers' list disagree
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "pipelines.md"
RESULTS = ROOT / "docs" / "measured" / "pipelines_cpu.json"

HEAD = """# Pipelines

Every pipeline class that diffusers {diffusers} has around the transformers of these families, found by asking diffusers. Each ran with a tiny random pipeline of that class on a CPU (torch {torch}), {steps} steps, method `{method}`, every step and layer sparse. *all pairs*: the largest difference from dense where all pairs are kept, as a share of the largest value; *sparse* and *dense*: self-attention calls of the last run at a sparsity of 0.6, whose sum is what hooks counted and what the record expected; *restored*: the next picture without dittools is the dense one to the bit. `python -m dittools.tools.pipelines_page --test` makes this page's figures.
"""  # noqa: E501


def test() -> None:
    """Draw with every row, and keep what came of it."""
    from dittools.provenance import versions
    from tests.classes_tiny import ROWS, class_of, listed
    from tests.classes_tiny.outcome import SPARSE, STEPS, run

    rows = {}
    for name, make in ROWS.items():
        row = make()
        found = asdict(run(row))
        rows[name] = {"family": listed()[class_of(name)], **found, "dense_because": list(row.dense.values())}
    kept = {
        "command": "python -m dittools.tools.pipelines_page --test",
        "device": "cpu",
        "versions": {name: versions()[name] for name in ("torch", "diffusers")},
        "steps": STEPS,
        "method": SPARSE["method"],
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def page() -> str:
    """The page that the kept results make."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [HEAD.format(**kept["versions"], steps=kept["steps"], method=kept["method"])]
    for family in dict.fromkeys(row["family"] for row in kept["rows"].values()):
        lines += [f"## {family}", "", "| class | all pairs | sparse | dense | restored | mind |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for name, row in kept["rows"].items():
            if row["family"] == family:
                calls, because = row["calls"], "; ".join(row["dense_because"])
                kind, _, how = name.replace(",", "").partition(" ")
                shown = f"`{kind}`{' ' + how if how else ''}"
                cells = [shown, f"{row['full_error']:.0e}", calls["sparse"], calls["dense"]]
                lines.append("| " + " | ".join(map(str, [*cells, "yes" if row["restored"] else "no", because])) + " |")
        lines.append("")
    return "\n".join(lines)


def problem() -> str | None:
    """Why the page is not what it should be; None where it is."""
    from tests.classes_tiny import ROWS, class_of, listed

    if not RESULTS.exists() or not PAGE.exists():
        return "there is no page yet"
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    if set(kept) != set(ROWS) or {class_of(name) for name in kept} != set(listed()):
        return "what is kept is not of the rows and classes that there are"
    return None if PAGE.read_text(encoding="utf-8") == page() else "the page is not that of what is kept"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    if asked.check:
        found = problem()
        if found:
            print(f"docs/pipelines.md: {found}; run python -m dittools.tools.pipelines_page --test", file=sys.stderr)
        return int(found is not None)
    if asked.test:
        test()
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
