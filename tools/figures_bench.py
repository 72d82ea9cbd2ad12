"""Tables of `dittools bench`: kernels, the Hopper kernel's variants, and whole denoiser calls. Used by `figures.py`."""

from __future__ import annotations

GOALS = ("H100", "H200")  # goals and floors were set for the first; the other has the same chip, and faster memory


def kernels(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows of the kernel table: the best of ours, Triton's beside it, and the best peer."""
    head = ["what", "heads x tokens", "kept", "kernel", "burst", "sustained", "burst, of cuDNN", "of FlashAttention",
            "triton", "best peer", "goal / floor"]  # fmt: skip
    card = result["device"]["name"]
    return head, [_kernel_row(row, card, kernel) for row in result["rows"] for kernel in _shown(row)]


def tritons(results: list[dict]) -> tuple[list[str], list[list]]:
    """Head and rows: r of the Hopper kernel and of Triton's, in bursts, by shape and version of Triton."""
    head = ["Triton", "heads x tokens", "kept", "hopper, ms", "hopper, r", "triton, ms", "triton, r"]
    rows = []
    for result in results:
        for row in result["rows"]:
            job, times = row["job"], row["times"]
            found = [times[name]["burst"] for name in ("hopper", "triton")]
            rows.append([
                result["versions"]["triton"], f"{job['heads']} x {job['tokens']:,}", f"{100 * row['kept']:.1f} %",
                *(cell for each in found for cell in (f"{each['ms']:.3f}", f"{each['r']:.3f}")),
            ])  # fmt: skip
    return head, rows


def first_use(results: list[dict]) -> tuple[list[str], list[list]]:
    """Head and rows: which kernels ran in each process, and what it spent before and in denoising. A process that
    proved no kernel has no note of it.
    """
    head = ["Triton", "process", "sparse calls by kernel", "denoise, s", "notes of proofs"]
    turns = ("first", "second")
    seen: dict[str, int] = {}
    rows = []
    for result in results:
        triton = result["versions"]["triton"]
        turn = seen[triton] = seen.get(triton, -1) + 1
        notes = [note for note in result["notes"] if "proof" in note]
        kernels = ", ".join(f"{name} {count}" for name, count in result["kernels"].items())
        rows.append([triton, turns[turn], kernels, f"{result['seconds']['denoise']:.1f}", "; ".join(notes) or "none"])
    return head, rows


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
        if job["goal"] is None or not any(name in card for name in GOALS)
        else f"{job['goal']:g} / {job['floor']:g} {_suffix(unit)}".rstrip()
    )
    wrong = [f"{name}: {why}" for name, why in row.get("wrong", {}).items() if name in row.get("ours", ())]
    if best is None:
        why = row.get("error") or "; ".join(wrong or [f"{n}: {w}" for n, w in row["not_run"].items()])
        return [title, shape, kept, why, *[""] * 6, aim]
    times = row["times"]
    figures = times[best]
    first = figures.get("burst") or figures["sustained"]
    attention = next((value(their) for name, their in times.items() if name.startswith("attention: ")), None)
    share = 100 / attention if unit == "%" and attention else 1  # of the attention, where the row is about that
    peers = {
        name: number * share for name, their in times.items()
        if name not in row["ours"] and not name.startswith(("dense: ", "attention: "))
        and (number := value(their)) is not None
    }  # fmt: skip
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


def variants(result: dict) -> list[tuple[list[str], list[list]]]:
    """Heads and rows of the Hopper kernel's variants: r of each in bursts, and what is wrong with the others.

    A table for each kind of call, as each has variants of its own: by rows of a tile, and with an order.
    """
    timed = [row for row in result["rows"] if row["job"]["kind"] == "time"]

    def kind(row: dict) -> tuple[bool, int]:
        return row["job"].get("ordered", False), -row["job"].get("query_block", 128)

    return [_variants_of([row for row in timed if kind(row) == one]) for one in sorted({kind(row) for row in timed})]


def _variants_of(timed: list[dict]) -> tuple[list[str], list[list]]:
    names = list(dict.fromkeys(name for row in timed if "ours" in row for name in row["ours"]))
    rows = []
    for row in timed:
        job = row["job"]
        blocks = f"{job.get('query_block', 128)} x {job['key_block']}{', ordered' if job.get('ordered') else ''}"
        case = f"{job['heads']} x {job['tokens']:,}, hd{job['head_dim']}, {blocks}, {job['family']}"
        if "error" in row:
            rows.append([case, "", row["error"], *[""] * len(names)])
            continue
        cells = [
            row["wrong"].get(name, cell(value(row["times"][name]), "r") if name in row["times"] else "")
            for name in names
        ]  # fmt: skip
        rows.append([case, f"{100 * row['kept']:.1f} %", row["dense"], *cells])
    return ["case", "kept", "dense", *names], rows


def mass(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows of the passes of block mass: milliseconds, and both ways of measuring against dense attention."""
    timed = [row for row in result["rows"] if row["job"]["kind"] == "time" and "table" in row]
    head, lines = ["variant"], {}
    for row in timed:
        shape = f"{row['job']['heads']} x {row['job']['tokens']:,}"
        head += [f"{shape}: LSE ms", "mass ms", "two passes", "LSE known"]
        for one in row["table"]:
            lines.setdefault(one["name"], {})[row["id"]] = [
                *(f"{one[name]:.2f}" for name in ("lse", "mass")), *(f"{one[name]:.3f} x" for name in ("two", "one"))
            ]  # fmt: skip
    return head, [
        [name, *(c for row in timed for c in found.get(row["id"], [""] * 4))] for name, found in lines.items()
    ]


def gpu_tests(result: dict) -> str:
    """What a run of the tests that need a GPU came to, and compute-sanitizer's memcheck, in sentences."""
    counts = ", ".join(f"{count} {name}" for name, count in result["total"].items())
    said = [f"{counts}, in {len(result['files'])} files" + ("" if result["finished"] else "; cut off before the last")]
    failed = [f"{file}: {test}" for file, found in result["files"].items() for test in found["failures"]]
    said += [f"failed: {', '.join(failed)}"] if failed else []
    watched = result.get("memcheck", {})
    if watched:
        clean = [name for name, found in watched.items() if found["clean"]]
        said.append(f"compute-sanitizer's memcheck is clean on {len(clean)} of {len(watched)}: {', '.join(clean)}")
    return ". ".join(text[0].upper() + text[1:] for text in said) + "."


def memory(results: list[dict]) -> tuple[list[str], list[list]]:
    """Head and rows: the most that a method's plan, and its whole call, took beyond q, k and v and what it keeps."""
    found: dict[str, dict] = {}
    for result in results:
        for entry in result["files"].values():
            for test, noted in entry.get("noted", {}).items():
                if "plan_mb" in noted:
                    found[test.split("[")[1].rstrip("]")] = noted
    return ["method", "plan, MB", "plan and attention, MB"], [
        [name, noted["plan_mb"], noted["call_mb"]] for name, noted in sorted(found.items())
    ]


def parts(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows of timed parts: milliseconds of each form, a column a case."""
    cases = result["rows"]
    names = dict.fromkeys(name for case in cases for name in case["milliseconds"])
    titles = (f"C = {c['clusters']}" if "clusters" in c else f"stride {c['stride']}" for c in cases)
    head = ["part", *(f"{t}, {c['heads']} x {c['tokens']:,}" for t, c in zip(titles, cases, strict=True))]
    return head, [
        [name, *(f"{c['milliseconds'][name]:.2f} ms" if name in c["milliseconds"] else "" for c in cases)]
        for name in names
    ]  # fmt: skip


def model(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows of whole denoiser calls: a line for each model, size and method; of a model, the most layers."""
    head = ["model", "pixels", "tokens", "sparse by", "dense s", "dense compiled s", "sparse s", "sparse compiled s",
            "eager", "compiled", "against the faster dense", "skipped", "peak GB, dense / sparse"]  # fmt: skip
    most: dict[tuple, int] = {}
    for row in result["rows"]:
        most[_model(row)] = max(most.get(_model(row), 0), row["job"].get("layers", 0))
    shown = [row for row in result["rows"] if row["job"].get("layers", 0) == most[_model(row)]]
    dense = {(_place(row), row["job"]["kind"]): row for row in shown if "method" not in row["job"]}
    lines: dict[tuple, dict[str, dict]] = {}
    for row in shown:
        if "method" in row["job"]:
            lines.setdefault((_place(row), _how(row)), {})[row["job"]["kind"]] = row
    for place in dict.fromkeys(place for place, _ in dense):
        if not any(place == other for other, _ in lines):
            lines[place, ""] = {}
    return head, [
        _model_row(place, how, {kind: row for (other, kind), row in dense.items() if other == place} | sparse)
        for (place, how), sparse in lines.items()
    ]  # fmt: skip


def in_short(result: dict) -> tuple[list[str], list[list]]:
    """The model table for a first look: the faster dense call against the faster sparse one, most gained first."""
    _, rows = model(result)
    lines = [
        [row[0].partition(", ")[0], *row[1:3], row[3].partition(",")[0], _least(row[4:6]), _least(row[6:8]), row[10]]
        for row in sorted((row for row in rows if row[10]), key=lambda row: -float(row[10].rstrip("x")))
    ]
    return ["model", "frames x pixels", "tokens", "method, skipped", "dense s", "sparse s", "faster"], lines


def _least(cells: list[str]) -> str:
    """The least of the cells that are numbers; others say why there is none."""
    return min((cell for cell in cells if cell.replace(".", "", 1).isdigit()), key=float)


def _model(row: dict) -> tuple:
    """A model at a size, however many of its layers ran."""
    job = row["job"]
    return job["model"], job["size"], *job["shape"], job.get("dtype")


def _place(row: dict) -> tuple:
    """What dense and sparse calls that are compared share."""
    job = row["job"]
    whole = f"{job['model']} {job['size']}"
    part = f", {job['layers']} layers of {job['heads']} heads" if "layers" in job else ""
    return whole + part, " x ".join(map(str, job["shape"])), job.get("tokens"), job.get("dtype")


def _how(row: dict) -> str:
    job = row["job"]
    first = job.get("dense_layers")
    return _setting(job) + (f", first {first} dense" if first else "")


def _setting(job: dict) -> str:
    """Method, sparsity, and the correction where one was named."""
    return f"{job['method']} {job['sparsity']:g}" + (f", {job['correction']}" if "correction" in job else "")


def _model_row(place: tuple, how: str, rows: dict[str, dict]) -> list:
    """One line: seconds of each kind, or why there are none."""
    kinds = ("dense", "dense compiled", "sparse", "sparse compiled")
    median = {kind: row["median"] for kind, row in rows.items() if "median" in row and "error" not in row}
    seconds = [f"{median[k]:.3f}" if k in median else rows[k]["error"] if k in rows else "" for k in kinds]
    eager, compiled = _gain(median, ("dense",), "sparse"), _gain(median, ("dense compiled",), "sparse compiled")
    best = min((k for k in kinds[2:] if k in median), key=median.get, default=None)
    skipped = next((r["skipped_sparse_calls"] for r in rows.values() if "skipped_sparse_calls" in r), None)
    gb = [max((r["peak_gb"] for k, r in rows.items() if k.startswith(kind) and r.get("peak_gb")), default=None)
          for kind in ("dense", "sparse")]  # fmt: skip
    return [
        place[0], place[1], f"{place[2]:,}" if place[2] else "", how, *seconds, eager, compiled,
        _gain(median, kinds[:2], best), "" if skipped is None else f"{skipped:.3f}",
        "" if gb == [None, None] else " / ".join("-" if x is None else f"{x:.1f}" for x in gb),
    ]  # fmt: skip


def _gain(median: dict[str, float], dense: tuple[str, ...], sparse: str | None) -> str:
    """How many times as fast as the fastest of some dense kinds."""
    base = [median[kind] for kind in dense if kind in median]
    return f"{min(base) / median[sparse]:.2f}x" if base and sparse in median else ""


COSTS = ("order", "select", "lists", "permute", "correct", "all")


def costs(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows of what methods cost besides attention, as shares of their attention's seconds."""
    head = ["method", "model", "pixels", "tokens", "attention ms", *COSTS[:-1], "all of it"]
    rows = []
    for row in result["rows"]:
        if "costs" not in row or "error" in row:
            continue
        model, pixels, tokens, _ = _place(row)
        shares = (f"{100 * row['costs'][name]:.1f} %" if name in row["costs"] else "" for name in COSTS)
        rows.append([
            _setting(row["job"]), model, pixels, f"{tokens:,}" if tokens else "",
            f"{1000 * row['parts']['attention']:.1f}", *shares,
        ])  # fmt: skip
    return head, rows


def deals(result: dict) -> list[tuple[list[str], list[list]]]:
    """Heads and rows: a table of the densities that are dealt, then one for each model, a source a line and a layout
    of ranks a column: how long ranks wait with heads in natural order, in a snake, and greedily dealt.
    """
    models: dict[str, dict[str, list[dict]]] = {}
    for row in result["rows"]:
        lines = models.setdefault(f"{row['model']}, {row['heads']} heads a layer", {})
        lines.setdefault(row.get("method", "searched windows"), []).append(row)
    parts = ("mean", "least", "most", "varied")
    densities = [
        [name.partition(",")[0], source, *(f"{row['density'][part]:.3f}" for part in parts)]
        for name, lines in models.items()
        for source, (row, *_) in lines.items()
    ]
    tables = [(["model", "densities of", *parts], densities)]
    for name, lines in models.items():
        layouts = next(iter(lines.values()))
        head = [name, *(f"{row['ranks']}: `{row['parallel']}`" for row in layouts)]
        whole = next(place for place, row in enumerate(layouts) if row["parallel"] == "ulysses:8")
        rows = []
        for source, found in lines.items():
            ways = found[whole]["ways"]
            rows.append([
                source, *(_waits(row["ways"], "balance", 3) for row in found), _waits(ways, "worst", 2),
                f"{ways['natural']['balance'] / ways['greedy']['balance']:.2f}x",
            ])  # fmt: skip
        tables.append(([*head, "worst of 8", "8 faster by greedy"], rows))
    return tables


def _waits(ways: dict, what: str, digits: int) -> str:
    return " / ".join(f"{ways[way][what]:.{digits}f}" for way in ("natural", "snake", "greedy"))


def cell(number: float | None, unit: str) -> str:
    """A figure with its unit; r has none."""
    if number is None:
        return ""
    return f"{number:.3f}" if unit == "r" else f"{number:.3g} {_suffix(unit)}"


def _suffix(unit: str) -> str:
    return "" if unit == "r" else unit
