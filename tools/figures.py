"""Fill the tables of docs/performance.md, docs/measured/*.md and README.md from docs/measured/*.json.

python -m dittools.tools.figures            write them
python -m dittools.tools.figures --check    exit with 1 where a table and its JSON disagree
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from dittools.tools import figures_bench, figures_errors, figures_reports, findings
from dittools.tools import figures_blocks as blocks

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "docs" / "measured"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md", *sorted(MEASURED.glob("*.md")))

NOTHING = "Not measured yet."

RENDER = {
    "report_methods": blocks.methods,
    "report_caches_480p": blocks.caches_beside_methods,
    **{
        f"report_{name}_cpu": blocks.kept
        for name in ("random_kept", "adaspa_rows", "svg_ear_refresh", "svg2_iterations", "anchored", "sampled")
    },
    "report_svg2_iterations_480p": blocks.kept,
    **{
        f"report_{name}_480p": blocks.kept
        for name in ("sampled", "default", "one_dense_step", "draws", "sampled_orders")
    },
    "report_svg2_times_480p": blocks.report,
    "report_equal_pairs_480p": figures_errors.equal_pairs,
    "errors": figures_errors.errors,
    "recall": blocks.recall,
    "gpu_tests": blocks.gpu_tests,
    "tritons": blocks.tritons,
    "first_use": blocks.first_use,
    "deal_simulated": blocks.deals,
    "in_short": blocks.in_short,
    "embedded_model": blocks.embedded_model,
    "svg_480p": blocks.sweep,
    "svg_cpu": blocks.sweep,
    "report_svg_480p": blocks.report,
    "report_caches_cpu": blocks.caches,
    "report_taylorseer_cpu": blocks.caches,
    "kernels": blocks.bench(figures_bench.kernels),
    "sample": blocks.bench(figures_bench.kernels),
    "hopper": blocks.benches(figures_bench.variants),
    "mass": blocks.bench(figures_bench.mass),
    "kmeans": blocks.bench(figures_bench.parts),
    "antidiagonals": blocks.bench(figures_bench.parts),
    "model": blocks.bench(figures_bench.model),
    "method_costs": blocks.bench(figures_bench.costs),
}
# A file for each card, and more with another word behind it: kernels_h100.json, model_h100_flux.json. The value is what
# the names of the files begin with.
EVERY_CARD = {
    **{name: name for name in ("kernels", "sample", "hopper", "mass", "kmeans", "antidiagonals", "model")},
    "report_methods": "report_methods",
    **{name: name for name in ("report_caches_480p", "recall", "gpu_tests", "tritons", "first_use", "errors")},
    "method_costs": "model",
    "in_short": "model",
}  # fmt: skip
TOGETHER = {
    "report_methods": figures_reports.together,
    **dict.fromkeys(("report_caches_480p", "recall", "gpu_tests", "tritons", "first_use"), blocks.all_at_once),
    "in_short": lambda results: blocks.all_at_once(blocks.by_card(results)),
    "errors": list,
}


def filled(text: str, folder: Path = MEASURED) -> str:
    """The page with every block between ``<!-- NAME -->`` and ``<!-- end -->`` made anew from the JSON in a folder."""

    def block(match: re.Match) -> str:
        name = match[1]
        if name in findings.BLOCKS:
            return f"<!-- {name} -->\n{findings.BLOCKS[name](folder) or NOTHING}\n<!-- end -->"
        every = name in EVERY_CARD
        paths = sorted(folder.glob(f"{EVERY_CARD[name]}_*.json")) if every else [folder / f"{name}.json"]
        results = [json.loads(path.read_text()) for path in paths if path.exists()]
        bodies = [RENDER[name](one) for one in (TOGETHER.get(name, blocks.by_card)(results) if every else results)]
        body = "\n\n".join(filter(None, bodies)) or NOTHING
        return f"<!-- {name} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.S)


def main() -> None:
    differ = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fresh = filled(text)
        if fresh != text:
            differ.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(fresh, encoding="utf-8")
    if "--check" in sys.argv and differ:
        sys.exit(f"{' and '.join(differ)} differ from their JSON: run python -m dittools.tools.figures")


if __name__ == "__main__":
    main()
