"""Fill docs/methods.md: its tables from the registries, and what was measured from docs/measured/*.json.

python -m dittools.tools.methods_page            write them
python -m dittools.tools.methods_page --check    exit with 1 where the page and registries or results disagree
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from dittools.tools import figures_reports
from dittools.tools.pages import write_or_check

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "methods.md"


def shown(value: Any) -> str:
    """An option's default as the page writes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def defaults(options: dict[str, tuple[Any, str]]) -> str:
    return ", ".join(f"`{name}={shown(default)}`" for name, (default, _) in options.items())


def said(cls: type, part: str) -> str:
    """What a recipe's docstring says after "Order:", "Selector:" or "Budget:", up to the full stop."""
    found = re.search(rf"{part}: ([^.]*)\.", " ".join((cls.__doc__ or "").split()))
    return found[1] if found else "–"


def decided(cls: type) -> str:
    """When a method chooses: in calls, from the grid alone, or before the run."""
    from dittools.methods import STATIC
    from dittools.methods.dense import Dense

    if cls is Dense:
        return "–"
    online = "static" if cls in STATIC else "online"
    return {"none": online, "given": f"{online}, or from a profile", "needed": "from a profile"}[cls.profile_use]


def methods_table() -> str:
    from dittools import methods
    from dittools.methods import auto

    head = ["method", "order", "keeps by", "budget", "decided", "options and defaults"]
    stands_for = ", ".join(f"`{cls.name}`" for cls in auto.CANDIDATES)
    rows = [["[`auto`](#auto)", *["–"] * 3, f"{stands_for} or dense", "none"]]
    for name, cls in methods.METHODS.items():
        parts = [said(cls, part) for part in ("Order", "Selector", "Budget")]
        rows.append([f"[`{name}`](#{name})", *parts, decided(cls), defaults(methods.options(name))])
    return table(head, rows)


def corrections_table() -> str:
    from dittools import corrections

    rows = [
        [f"[`{name}`](#{name})", cls.summary, defaults(corrections.options(name))]
        for name, cls in corrections.CORRECTIONS.items()
    ]
    return table(["correction", "what it does", "options and defaults"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def measured(name: str, folder: Path) -> str:
    """What the committed results say of a method or correction, in a line each; a table is in measured/methods.md."""
    lines, beside = [], []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(("report_caches", "report_equal_pairs")):
            continue  # the rows without a cache, or all, are of fewer prompts than those of other reports
        result = json.loads(path.read_text())
        if path.name.startswith("report_methods"):
            beside.append(result)
            continue
        found = swept(name, result) if "runs" in result and result.get("method") == name else reported(name, result)
        if found:
            lines.append(f"{found} ({path.name}, whole in [all methods](measured/methods.md))")
    # Of all methods: quality of many prompts, and seconds of reports that were timed.
    together = [reported(name, one) for one in figures_reports.together(beside)]
    lines = [*(f"{found} (whole in [all methods](measured/methods.md))" for found in together if found), *lines]
    return "; ".join(lines) if lines else "not measured yet"


def swept(name: str, result: dict) -> str:
    """A sweep of sparsities, means over its runs."""
    runs: dict[float, list[dict]] = {}
    for run in result["runs"]:
        if run["setting"] != "dense":
            runs.setdefault(run["setting"], []).append(run)
    cells = [
        figures(f"{setting:g} skipped", *(sum(r[k] for r in some) / len(some) for k in ("speedup", "psnr", "ssim")))
        for setting, some in runs.items()
    ]
    size = " x ".join(map(str, result["size"]))
    return f"{size}, {result['steps']} steps, on {result['device']['name']}: {'; '.join(cells)}"


def reported(name: str, result: dict) -> str:
    """The lines of a report that are of this method or correction, with nothing else swept but a profile."""
    if "summary" not in result or "manifest" not in result:
        return ""
    lines = [line for line in result["summary"] if name in _concerned(line["setting"])]
    ups = result.get("speedups", {})
    cells = [
        figures(line["setting"], line["speedup"] or ups.get(line["setting"]), line["psnr"], line["ssim"])
        for line in sorted(lines, key=lambda line: (line["setting"].count(", "), line["setting"]))
    ]
    return f"on {result['manifest']['device']['name']}: {'; '.join(cells)}" if cells else ""


def _concerned(setting: str) -> tuple[str | None, ...]:
    """The method and the correction of a setting that names nothing else but a sparsity and a profile."""
    match = figures_reports.NAME.match(re.sub(r", profile [^,]+", "", setting))
    return (match["method"], match["rest"]) if match and " " not in (match["rest"] or "") else ()


def figures(setting: str, speedup: float | None, psnr: float | str | None, ssim: float | None) -> str:
    found = [f"{speedup:.2f}x"] if speedup is not None else []
    found += ["identical"] if psnr == "inf" else [f"{psnr:.2f} dB"] if psnr is not None else []
    found += [f"SSIM {ssim:.4f}"] if ssim is not None else []
    return f"{setting} {', '.join(found)}"


def filled(text: str, folder: Path = DOCS / "measured") -> str:
    """The page with its tables, and every ``<!-- measured NAME -->``, made anew."""
    for name, make in (("methods", methods_table), ("corrections", corrections_table)):
        fresh = f"<!-- {name} -->\n{make()}\n<!-- end -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, fresh=fresh: fresh, text, flags=re.S)

    def line(match: re.Match) -> str:
        return f"<!-- measured {match[1]} -->{measured(match[1], folder)}<!-- end -->"

    return re.sub(r"<!-- measured (\w+) -->.*?<!-- end -->", line, text, flags=re.S)


def without_card(text: str) -> list[str]:
    """Methods and corrections that the page does not describe."""
    from dittools import corrections, methods

    return [name for name in (*methods.METHODS, *corrections.CORRECTIONS) if f"\n### `{name}`\n" not in text]


def main(arguments: list[str]) -> int:
    text = PAGE.read_text(encoding="utf-8")
    if missing := ", ".join(without_card(text)):
        print(f"docs/methods.md has no card of {missing}: write one like that of `random`", file=sys.stderr)
        return 2
    differs = "docs/methods.md differs from registries or results: run python -m dittools.tools.methods_page"
    return write_or_check(PAGE, filled(text), "--check" in arguments, differs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
