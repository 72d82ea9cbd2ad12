"""Check and time the Hopper kernel's variants on this machine: ``python -m dittools.kernels.tune_hopper --json PATH``.

Each figure is r = dense time x density / sparse time, with dense attention by PyTorch's fastest kernel, timed in the
same process on the same tensors, in turn with the variants. A variant is timed only after its result has been checked
against fp32 on sampled rows of that very case. The work is done by a child process, which is replaced when it says
nothing for ``--patience`` seconds: a kernel that hangs costs its case, not the run. The JSON is rewritten after every
result.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from dittools.kernels.hopper import Variant

VARIANTS = {
    "stages2": Variant(stages=2),
    "stages3": Variant(stages=3),
    "persistent": Variant(stages=2, persistent=True),
    "stages3-persistent": Variant(stages=3, persistent=True),
    "no-pin": Variant(stages=2, pin=False),
    "in-turn": Variant(stages=2, overlap=False),
}
# batch 1: heads, tokens, head dim
SHAPES = [(12, 32768, 128), (40, 75648, 128), (12, 32768, 64), (40, 75648, 64)]
# query rows' kept share: density, family
FAMILIES = [
    (0.2, "uniform"),
    (1.0, "uniform"),
    (0.2, "ragged"),
    (0.1, "uniform"),
    (0.5, "uniform"),
    (0.25, "uniform"),
    (0.1, "ragged"),
    (0.2, "heavy head"),
]
LONG = 50_000  # tokens from which only what is likely to be the fastest is timed


def jobs() -> list[dict]:
    """Every case in the order of its interest: small checks first, then timings."""
    checks = [
        {"kind": "check", "head_dim": dim, "key_block": block, "variant": name}
        for dim in (128, 64)
        for block in (128, 64)
        for name in VARIANTS
        if runs(name, dim)
    ]
    timings = []
    for shape in SHAPES:
        for block in (128, 64):
            for density, family in FAMILIES:
                if block == 64 and (density, family) not in ((0.2, "uniform"), (0.2, "ragged"), (0.1, "uniform")):
                    continue
                if shape == SHAPES[-1] and (block == 64 or density > 0.2):
                    continue
                names = [n for n in VARIANTS if runs(n, shape[2])]
                if shape[1] >= LONG or block == 64:
                    names = [n for n in names if n not in ("no-pin", "in-turn")]
                timings.append(
                    {"kind": "time", "shape": shape, "key_block": block, "density": density, "family": family,
                     "variants": names}
                )  # fmt: skip
    timings.append({"kind": "sustained", "shape": SHAPES[1], "key_block": 128, "density": 0.2, "family": "uniform"})
    return checks + timings


def runs(name: str, head_dim: int) -> bool:
    """Whether a variant fits into shared memory."""
    return head_dim == 64 or name != "stages3-persistent"


# ---- the child: one line of JSON to stdout for every job


def work(todo: list[dict]) -> None:
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    tensors = {}
    for job in todo:
        started = time.monotonic()
        try:
            if job["kind"] == "check":
                result = check_small(job)
            else:
                shape = tuple(job["shape"])
                if shape not in tensors:
                    tensors.clear()
                    torch.cuda.empty_cache()
                    tensors[shape] = make_tensors(*shape)
                result = (time_case if job["kind"] == "time" else time_sustained)(job, *tensors[shape])
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:500]}
            # A fault on the card leaves nothing usable behind: a new process goes on.
            result["fatal"] = not isinstance(error, ValueError)
        result["seconds"] = round(time.monotonic() - started, 2)
        print(json.dumps(result), flush=True)
        if result.get("fatal"):
            return


def make_tensors(heads: int, tokens: int, dim: int):
    """q, k, v ``[1, S, H, D]`` in bf16, and the layout in which dense attention is faster on them."""
    import torch

    q, k, v = (torch.randn(1, tokens, heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    heads_first = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    found = timed({"tokens first": lambda: dense(q, k, v), "heads first": lambda: dense(*heads_first)}, 3)
    layout = min(found, key=lambda name: statistics.median(found[name]))
    return q, k, v, (layout, heads_first if layout == "heads first" else (q, k, v))


def dense(q, k, v):
    from dittools.kernels.dispatch import dense_attention

    return dense_attention(q, k, v)


def make_mask(heads: int, tokens: int, key_block: int, density: float, family: str):
    """A random mask whose rows keep ``density`` of the key blocks, each or (ragged) on average."""
    import torch

    from dittools.blocks import BlockMask, Partition

    query, key = Partition(tokens, 128), Partition(tokens, key_block)
    share = torch.full((heads, query.count), density, device="cuda")
    if family == "ragged":
        share *= torch.empty_like(share).uniform_(0.2, 1.8)
    elif family == "heavy head":
        share *= heads / (heads + 2)
        share[0] *= 3
    counts = (share * key.count).round().clamp(1, key.count)
    keep = torch.empty(1, heads, query.count, key.count, dtype=torch.bool, device="cuda")
    for h in range(heads):
        rank = torch.rand(query.count, key.count, device="cuda").argsort(-1).argsort(-1)
        keep[0, h] = rank < counts[h, :, None]
    return BlockMask(keep, query, key)


def check_small(job: dict) -> dict:
    """A variant on small ragged inputs with empty and full rows: raises unless it is right."""
    import torch

    dim, block, variant = job["head_dim"], job["key_block"], VARIANTS[job["variant"]]
    for tokens, heads in ((100, 1), (1000, 2), (4111, 3)):
        q, k, v = (torch.randn(1, tokens, heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        mask = make_mask(heads, tokens, block, 0.4, "ragged")
        mask.keep[0, 0, 0], mask.keep[0, 0, -1] = False, True
        check_rows(q, k, v, mask, variant, rows=300)
    return {"correct": True}


def check_rows(q, k, v, mask, variant: Variant, rows: int = 40) -> None:
    """Raise unless sampled rows of some heads agree with fp32 as well as plain bf16 attention does."""
    import torch

    from dittools.kernels.hopper import hopper_block_sparse_attention

    scale = q.shape[-1] ** -0.5
    out, lse = hopper_block_sparse_attention(q, k, v, mask, order=None, scale=scale, variant=variant)
    tokens, heads = q.shape[1:3]
    sample = torch.cat([torch.randint(tokens, (rows,)), torch.tensor([0, tokens - 1])]).cuda()
    for h in sorted({0, heads // 2, heads - 1}):
        kept = mask.to_tokens(0, h, sample)
        exact, exact_lse = rows_of(q[0, sample, h].float(), k[0, :, h].float(), v[0, :, h].float(), kept, scale)
        plain, _ = rows_of(q[0, sample, h], k[0, :, h], v[0, :, h], kept, scale)
        size = exact.square().mean().sqrt().clamp_min(1e-12)
        error = ((out[0, sample, h].float() - exact).square().mean().sqrt() / size).item()
        allowed = 2 * ((plain.float() - exact).square().mean().sqrt() / size).item() + 1e-5
        if not error <= allowed:
            raise ValueError(f"wrong output at head {h}: RMS error {error:.2e}, allowed {allowed:.2e}")
        found = lse[0, h, sample]
        empty = ~kept.any(-1)
        if not torch.equal(found.isneginf(), empty) or (out[0, sample, h][empty] != 0).any():
            raise ValueError(f"wrong empty rows at head {h}")
        if not ((found - exact_lse)[~empty].abs() < 2e-3).all():
            raise ValueError(f"wrong LSE at head {h}")


def rows_of(q, k, v, kept, scale):
    """Attention of rows q ``[n, D]`` over k, v ``[S, D]`` where ``kept`` ``[n, S]``, in their dtype, and its LSE."""
    logits = (q @ k.T * scale).masked_fill(~kept, float("-inf"))
    return logits.softmax(-1).nan_to_num(0.0) @ v, logits.float().logsumexp(-1)


def timed(calls: dict, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, in turn, after one round that does not count."""
    import torch

    found = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if turn:
                found[name].append(start.elapsed_time(end))
    return found


def sparse_calls(q, k, v, mask, names):
    """Calls by name, of the variants that are right; and what is wrong with the others."""
    from dittools.kernels.hopper import hopper_block_sparse_attention

    scale = q.shape[-1] ** -0.5
    calls, wrong = {}, {}
    for name in names:
        try:
            check_rows(q, k, v, mask, VARIANTS[name])
        except ValueError as error:
            wrong[name] = str(error)
            continue
        except Exception as error:
            raise RuntimeError(f"{name}: {error}") from error
        calls[name] = lambda variant=VARIANTS[name]: hopper_block_sparse_attention(
            q, k, v, mask, order=None, scale=scale, variant=variant
        )
    return calls, wrong


def time_case(job: dict, q, k, v, baseline) -> dict:
    """Dense attention, the variants and the Triton kernel on one mask, in turn."""
    from dittools.kernels.dispatch import dense_kernel_name
    from dittools.kernels.triton_block_sparse import triton_block_sparse_attention

    heads, tokens, dim = job["shape"]
    mask = make_mask(heads, tokens, job["key_block"], job["density"], job["family"])
    mask.lists()
    density = mask.density().double().mean().item()
    calls, wrong = sparse_calls(q, k, v, mask, job["variants"])
    layout, dense_inputs = baseline
    calls = {"dense": lambda: dense(*dense_inputs), **calls}
    if tokens < LONG and job["density"] <= 0.25:
        calls["triton"] = lambda: triton_block_sparse_attention(q, k, v, mask, order=None, scale=dim**-0.5)
    found = timed(calls, 3 if tokens >= LONG else 9)
    median = {name: statistics.median(times) for name, times in found.items()}
    pairs = 4e-9 * dim * heads * tokens**2
    dense_ms = median.pop("dense")
    return {
        "kept": density,
        "dense": {"kernel": dense_kernel_name(q.device, q.dtype, dim), "layout": layout, "ms": dense_ms,
                  "tflops": pairs / dense_ms},
        "sparse": {name: {"ms": ms, "r": dense_ms * density / ms, "tflops": pairs * density / ms}
                   for name, ms in median.items()},
        "wrong": wrong,
    }  # fmt: skip


def time_sustained(job: dict, q, k, v, baseline) -> dict:
    """Two seconds of dense attention and two of the default variant, without pauses."""
    import torch

    heads, tokens, _ = job["shape"]
    mask = make_mask(heads, tokens, job["key_block"], job["density"], job["family"])
    density = mask.density().double().mean().item()
    calls, wrong = sparse_calls(q, k, v, mask, ["stages2", "persistent"])
    calls = {"dense": lambda: dense(*baseline[1]), **calls}
    once = {name: statistics.median(times) for name, times in timed(calls, 1).items()}
    ms = {}
    for name, call in calls.items():
        turns = max(2, round(2000 / once[name]))
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(turns):
            call()
        end.record()
        torch.cuda.synchronize()
        ms[name] = start.elapsed_time(end) / turns
    dense_ms = ms.pop("dense")
    return {
        "kept": density,
        "dense": {"ms": dense_ms},
        "sparse": {name: {"ms": one, "r": dense_ms * density / one} for name, one in ms.items()},
        "wrong": wrong,
    }


# ---- the parent


def supervise(todo: list[dict], report: dict, path: Path, patience: float, deadline: float) -> None:
    """Hand the jobs to children, and write down what they say."""
    while todo and time.monotonic() < deadline:
        child = subprocess.Popen(
            [sys.executable, "-m", "dittools.kernels.tune_hopper", "--work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        child.stdin.write(json.dumps(todo))
        child.stdin.close()
        lines = queue.Queue()
        threading.Thread(target=_pump, args=(child.stdout, lines), daemon=True).start()
        result = {}
        while todo and result is not None:
            result = _next_result(lines, min(patience, deadline - time.monotonic()))
            job = todo.pop(0)
            if result is not None:
                said = result
            elif time.monotonic() >= deadline:
                todo.insert(0, job)
                break
            else:
                said = {"error": f"said nothing for {patience:g} s" if child.poll() is None else "the process ended"}
            report["results"].append({**job, **said})
            _write(path, report)
            print(line(job, said), file=sys.stderr, flush=True)
            if said.get("fatal"):
                break
        child.kill()
        child.wait()
        todo[:] = without_broken(todo, report["results"])
    report["left_out"] = todo
    _write(path, report)


def without_broken(todo: list[dict], results: list[dict]) -> list[dict]:
    """The timings without variants that failed their check, or brought down the process."""
    broken = {(r["head_dim"], r["key_block"], r["variant"]) for r in results if r["kind"] == "check" and "error" in r}
    for r in results:
        if r["kind"] == "time" and r.get("fatal"):
            broken |= {(r["shape"][2], r["key_block"], n) for n in r["variants"] if f" {n}: " in r["error"]}

    def ok(job, name):
        return (job["shape"][2], job["key_block"], name) not in broken

    return [
        {**job, "variants": [n for n in job["variants"] if ok(job, n)]} if "variants" in job else job for job in todo
    ]


def _pump(stream, lines: queue.Queue) -> None:
    for text in stream:
        if text.startswith("{"):
            lines.put(json.loads(text))
    lines.put(None)


def _next_result(lines: queue.Queue, seconds: float) -> dict | None:
    try:
        return lines.get(timeout=max(seconds, 0.1))
    except queue.Empty:
        return None


def _write(path: Path, report: dict) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(part, path)


def line(job: dict, result: dict) -> str:
    """One result in one line."""
    if job["kind"] == "check":
        what = f"check hd{job['head_dim']} 128x{job['key_block']} {job['variant']}"
        return f"{what}: {result.get('error', 'right')}"
    heads, tokens, dim = job["shape"]
    what = f"{job['kind']} {heads} x {tokens} hd{dim} 128x{job['key_block']} {job['density']:g} {job['family']}"
    if "error" in result:
        return f"{what}: {result['error']}"
    rates = "  ".join(f"{name} {x['r']:.3f}" for name, x in result["sparse"].items())
    wrong = "".join(f"  {name}: {why}" for name, why in result["wrong"].items())
    return f"{what}: dense {result['dense']['ms']:.2f} ms, r: {rates}{wrong}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--patience", type=float, default=60, help="seconds without a result that mean a hang")
    parser.add_argument("--seconds", type=float, default=340, help="when to stop")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(json.loads(sys.stdin.read()))
        return
    if arguments.json is None:
        parser.error("--json is needed")
    import torch
    import triton

    from dittools.kernels.hopper import why_not_hopper

    reason = why_not_hopper(torch.device("cuda"), torch.bfloat16, 128)
    if reason is not None:
        sys.exit(f"the Hopper kernel cannot run here: {reason}")
    report = {
        "command": "python -m dittools.kernels.tune_hopper",
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
                     "cudnn": torch.backends.cudnn.version()},
        "variants": {name: asdict(variant) for name, variant in VARIANTS.items()},
        "results": [],
    }  # fmt: skip
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    todo = jobs()
    supervise(todo, report, arguments.json, arguments.patience, time.monotonic() + arguments.seconds)
    failed = [line(r, r) for r in report["results"] if "error" in r or r.get("wrong")]
    print(f"{len(report['results'])} results, {len(failed)} with faults, {len(report['left_out'])} left out")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
