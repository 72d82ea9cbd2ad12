"""Tables of `dittools bench`: kernels, the Hopper kernel's variants, and whole denoiser calls. Used by `figures.py`."""

from __future__ import annotations

GOALS = "H100"  # the card that goals and floors were set for


def kernels(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows of the kernel table: the best of ours, Triton's beside it, and the best peer."""
    head = ["what", "heads x tokens", "kept", "kernel", "burst", "sustained", "burst, of cuDNN", "of FlashAttention",
            "triton", "best peer", "goal / floor"]  # fmt: skip
    card = result["device"]["name"]
    return head, [_kernel_row(row, card, kernel) for row in result["rows"] for kernel in _shown(row)]


def _shown(row: dict) -> list[str | None]:
    """Which of ours get a line: the best, or each where the row is there to compare them."""
    if "error" in row or row["job"]["kind"] not in ("order", "schedule"):
        return [row.get("best")]
    return [name for name in row["ours"] if name in row["times"]] or [None]


def _kernel_row(row: dict, card: str, best: str | None) -> list:
    """One line: what ``best``, a kernel of ours, did in this row; the reason where there is none."""
    job, unit = row["job"], row["job"]["unit"]
    title = job["title"] + (f", C = {job['clusters'][1]}" if job["kind"] == "kmeans" else "")
    kept = f"{100 * row['kept']:.1f} %" if "kept" in row else ""
    shape = f"{job['heads']} x {job['tokens']:,}"
    aim = (
        ""
        if job["goal"] is None or GOALS not in card
        else f"{job['goal']:g} / {job['floor']:g} {_suffix(unit)}".rstrip()
    )
    wrong = [f"{name}: {why}" for name, why in row.get("wrong", {}).items() if name in row.get("ours", ())]
    if best is None:
        why = row.get("error") or "; ".join(wrong or [f"{n}: {w}" for n, w in row["not_run"].items()])
        return [title, shape, kept, why, *[""] * 6, aim]
    times = row["times"]
    figures = times[best]
    first = figures.get("burst") or figures["sustained"]
    peers = {
        name: value(their) for name, their in times.items()
        if name not in row["ours"] and not name.startswith(("dense: ", "attention: "))
    }  # fmt: skip
    peers = {name: number for name, number in peers.items() if number is not None}
    peer = (max if unit == "r" else min)(peers, key=peers.get) if peers else None
    return [
        title, shape, kept, "; ".join([best, *wrong]),
        *(cell(value({kind: figures.get(kind)}), unit) for kind in ("burst", "sustained")),
        cell(first.get("r_cudnn"), "r"), cell(first.get("r_flash"), "r"),
        cell(value(times["triton"]), unit) if "triton" in times else "",
        f"{peer} {cell(peers[peer], unit)}" if peer else "", aim,
    ]  # fmt: skip


def value(figures: dict) -> float | None:
    """r of a contender, or what else the row is about, or ms; by bursts where they were timed."""
    measured = figures.get("burst") or figures.get("sustained") or {}
    return measured.get("r", measured.get("value", measured.get("ms")))


def variants(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows of the Hopper kernel's variants: r of each in bursts, and what is wrong with the others."""
    timed = [row for row in result["rows"] if row["job"]["kind"] == "time"]
    names = list(dict.fromkeys(name for row in timed if "ours" in row for name in row["ours"]))
    rows = []
    for row in timed:
        job = row["job"]
        case = f"{job['heads']} x {job['tokens']:,}, hd{job['head_dim']}, 128 x {job['key_block']}, {job['family']}"
        if "error" in row:
            rows.append([case, "", row["error"], *[""] * len(names)])
            continue
        cells = [
            row["wrong"].get(name, cell(value(row["times"][name]), "r") if name in row["times"] else "")
            for name in names
        ]  # fmt: skip
        rows.append([case, f"{100 * row['kept']:.1f} %", row["dense"], *cells])
    return ["case", "kept", "dense", *names], rows


def model(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows of whole denoiser calls."""
    head = ["call", "grid", "seconds (least to most)", "against eager dense", "against compiled dense", "skipped",
            "GB", "select / lists / attention / check, ms"]  # fmt: skip
    return head, [_model_row(row) for row in result["rows"]]


def _model_row(row: dict) -> list:
    job = row["job"]
    name = f"{row['job']['kind']}, {job['model']} {job['size']}" + (
        f", {job['method']} {job['sparsity']:g}" if "sparse" in job["kind"] else ""
    )
    grid = " x ".join(map(str, job["shape"]))
    if "error" in row:
        return [name, grid, row["error"], *[""] * 5]
    gain, parts = row.get("speedup", {}), row.get("parts", {})
    return [
        name, grid, f"{row['median']:.3f} ({row['least']:.3f} to {row['most']:.3f})",
        *(f"{gain[kind]:.2f}x" if kind in gain else "" for kind in ("dense", "dense compiled")),
        f"{row['skipped_sparse_calls']:.3f}" if "skipped_sparse_calls" in row else "",
        "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}",
        " / ".join(f"{1000 * parts[part]:.1f}" for part in ("select", "lists", "attention", "check") if part in parts),
    ]  # fmt: skip


def cell(number: float | None, unit: str) -> str:
    """A figure with its unit; r has none."""
    if number is None:
        return ""
    return f"{number:.3f}" if unit == "r" else f"{number:.3g} {_suffix(unit)}"


def _suffix(unit: str) -> str:
    return "" if unit == "r" else unit
