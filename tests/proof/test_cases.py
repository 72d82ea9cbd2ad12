"""A kernel proves itself only when every case is right, every time."""

import pytest
import torch

from dittools.kernels import measure_block_mass, measure_lse
from dittools.kernels.block_sparse import dispatch
from dittools.kernels.clusters import dispatch as clustered
from dittools.kernels.proof import cases as proof
from dittools.kernels.proof import mass as proof_mass
from dittools.kernels.proof.check import Wrong


def silent(what, patience=None):
    pass


def case(**changes):
    return {**proof.jobs()[0], "device": "cpu", "kernel": "portable", "dtype": "float32", **changes}


def narrow_case(**changes):
    return case(**{**proof.jobs(proof.NARROW)[0], "device": "cpu", "dtype": "float32", **changes})


def cluster_case(**changes):
    first = proof.jobs(proof.CLUSTERS)[0]
    return {**first, "device": "cpu", "kernel": "portable", "dtype": "float32", "head_dim": 64, **changes}


def mass_case(**changes):
    first = proof.jobs(proof.MASS)[0]
    return {**first, "device": "cpu", "kernel": "portable", "dtype": "float32", "head_dim": 64, **changes}


def results(kernel=proof.BLOCKS):
    found = {job["id"]: {"right": True} for job in proof.jobs(kernel)}
    first, second = (job["id"] for job in proof.jobs(kernel)[-2:])
    return found | {first: {"speedup": 1.4}, second: {"speedup": 0.9}}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [1, 129, 700])
@pytest.mark.parametrize("make", [case, narrow_case])
def test_a_right_kernel_proves_itself(make, tokens, biased):
    assert proof.prove(make(tokens=tokens, heads=2, batch=2, biased=biased), silent) == {"right": True}


@pytest.mark.parametrize(("kernel", "rows"), [(proof.BLOCKS, 128), (proof.NARROW, 64)])
def test_every_build_of_a_kernel_is_proven_with_its_own_query_blocks(kernel, rows):
    *cases, first, second = proof.jobs(kernel)
    assert {job["query_block"] for job in (*cases, first, second)} == {rows}
    named = {(job["head_dim"], job["key_block"], job["dtype"]) for job in cases}
    assert len(named) == 8
    biased = {(job["head_dim"], job["key_block"]) for job in cases if job["biased"]}
    assert len(biased) == 4


@pytest.mark.parametrize("fault", ["wrong", "differs", "ignores the bias"])
def test_a_faulty_kernel_does_not(monkeypatch, fault):
    right, turns = dispatch.portable_block_sparse_attention, []

    def faulty(*args, **call):
        turns.append(1)
        if fault == "ignores the bias":
            call["key_bias"] = None
        out, lse = right(*args, **call)
        if fault == "wrong" or (fault == "differs" and len(turns) == 3):
            out[0, -1] += 0.01
        return out, lse

    monkeypatch.setattr(dispatch, "portable_block_sparse_attention", faulty)
    with pytest.raises(Wrong, match="two calls" if fault == "differs" else "RMS error|LSE|keeps nothing"):
        proof.prove(case(tokens=700, heads=2, batch=1, biased=True), silent)


@pytest.mark.parametrize("family", proof.FAMILIES)
@pytest.mark.parametrize("tokens", [1, 700])
def test_a_right_kernel_for_clusters_proves_itself(tokens, family):
    case = cluster_case(tokens=tokens, family=family, heads=2, batch=2)
    assert proof.prove_clusters(case, silent) == {"right": True}


@pytest.mark.parametrize("fault", ["wrong", "differs", "sees what nobody keeps", "takes one order for both"])
def test_a_faulty_kernel_for_clusters_does_not(monkeypatch, fault):
    right, turns = clustered.portable_cluster_attention, []

    def faulty(q, k, v, mask, **call):
        turns.append(1)
        if fault == "takes one order for both":
            call["key_order"] = call["order"]
        out, lse = right(q, k, v, mask, **call)
        if fault == "sees what nobody keeps":
            out = out + 1e-4 * v.amax()
        if fault == "wrong" or (fault == "differs" and len(turns) == 3):
            out[0, -1] += 0.01
        return out, lse

    monkeypatch.setattr(clustered, "portable_cluster_attention", faulty)
    with pytest.raises(Wrong, match="two calls" if fault == "differs" else "RMS error|LSE|keeps nothing|not finite"):
        proof.prove_clusters(cluster_case(tokens=700, heads=2, batch=1), silent)


@pytest.mark.parametrize("family", [*proof.FAMILIES, "even"])
def test_clusters_share_out_all_tokens_as_their_family_says(family):
    mask = proof.random_clusters(family, 3, 1000, (8, 30), 0.3, torch.device("cpu"))
    for sizes in (mask.query.sizes(), mask.key.sizes()):
        assert (sizes >= 0).all() and (sizes.sum(-1) == 1000).all() and sizes.dtype == torch.int32
    sizes = mask.key.sizes()
    assert ((sizes == 0).sum(-1) > 5).all() == (family == "many empty")
    assert (sizes.amax(-1) > 600).all() == (family == "one giant")
    assert 0.2 < mask.keep.float().mean() < 0.4


def test_what_brought_a_process_down_is_not_tried_again():
    hung = "hung: silent for 60 s"
    with pytest.raises(Wrong, match="hopper: hung"):
        proof.prove(case(without={"hopper": hung}), silent)
    with pytest.raises(Wrong, match="hopper-64: hung"):
        proof.prove(narrow_case(without={"hopper-64": hung}), silent)
    with pytest.raises(Wrong, match="hopper-clusters: hung"):
        proof.prove_clusters(cluster_case(without={"hopper-clusters": hung}), silent)
    # One kernel is not to blame for the other.
    assert proof.prove(case(without={"hopper-clusters": hung, "hopper-64": hung}), silent) == {"right": True}
    assert proof.prove(narrow_case(without={"hopper": hung}), silent) == {"right": True}
    assert proof.prove_clusters(cluster_case(without={"hopper": hung}), silent) == {"right": True}


@pytest.mark.parametrize("kernel", [proof.BLOCKS, proof.NARROW])
def test_two_kernels_are_compared_once_both_are_right(kernel):
    small = {"device": "cpu", "dtype": "float32", "tokens": 300, "heads": 2, "head_dim": 64}
    small |= {"seconds": 0.05, "kernels": ("portable", "naive")}
    job = {**proof.jobs(kernel)[-1], **small}
    with torch.no_grad():
        found = proof.faster(job, silent)
        assert "speedup" not in proof.faster({**job, "kernels": ["portable"]}, silent)
    with pytest.raises(Wrong, match=f"{proof.TRITON[kernel]}: hung"):
        proof.faster({**job, "without": {proof.TRITON[kernel]: "hung"}}, silent)
    assert found["speedup"] == pytest.approx(found["times"]["naive"]["ms"] / found["times"]["portable"]["ms"])


@pytest.mark.parametrize("turn", [-2, -1])
def test_two_kernels_for_clusters_are_compared_once_both_are_right(turn, monkeypatch):
    small = {"device": "cpu", "dtype": "float32", "tokens": 300, "heads": 2, "head_dim": 64, "clusters": (3, 9)}
    job = {**proof.jobs(proof.CLUSTERS)[turn], **small, "seconds": 0.05, "kernels": ("portable", "naive")}
    right, seen = clustered.portable_cluster_attention, []

    def watched(*args, **call):
        seen.append((call["order"] is None, call["key_order"] is None))
        return right(*args, **call)

    monkeypatch.setattr(clustered, "portable_cluster_attention", watched)
    with torch.no_grad():
        found = proof.clusters_faster(job, silent)
    assert found["speedup"] == pytest.approx(found["times"]["naive"]["ms"] / found["times"]["portable"]["ms"])
    assert set(seen) == {(turn == -2,) * 2}


@pytest.mark.parametrize("blocks", proof_mass.BLOCKS, ids=str)
@pytest.mark.parametrize("tokens", [1, 129, 700])
def test_a_right_kernel_for_mass_proves_itself(tokens, blocks):
    case = mass_case(tokens=tokens, heads=2, batch=2, query_block=blocks[0], key_block=blocks[1])
    assert proof_mass.prove_mass(case, silent) == {"right": True}


@pytest.mark.parametrize("fault", ["wrong", "differs", "forgets the last keys", "overflows", "a bad LSE"])
def test_a_faulty_kernel_for_mass_does_not(monkeypatch, fault):
    turns = []

    def faulty(q, k, query, key, **call):
        turns.append(1)
        mass = measure_block_mass(q, k, query, key, **call)
        if fault == "wrong" or (fault == "differs" and len(turns) == 3):
            mass[0, -1, -1, 0] *= 1.01
        if fault == "forgets the last keys":
            mass[..., -1] = 0
        if fault == "overflows" and k.abs().max() > 100:
            mass[0, 0, 0] = torch.nan
        return mass

    def faulty_lse(*args, **call):
        lse = measure_lse(*args, **call)
        return lse + 0.01 if fault == "a bad LSE" else lse

    monkeypatch.setattr(proof_mass, "measure_block_mass", faulty)
    monkeypatch.setattr(proof_mass, "measure_lse", faulty_lse)
    said = {"differs": "two calls", "overflows": "not finite", "a bad LSE": "LSE"}.get(
        fault, "mass is off|does not sum"
    )
    with pytest.raises(Wrong, match=said):
        proof_mass.prove_mass(mass_case(tokens=700, heads=2, batch=1), silent)


@pytest.mark.parametrize("turn", [-2, -1])
def test_two_kernels_for_mass_are_compared_once_both_are_right(turn, monkeypatch):
    for name in ("measure_block_mass", "measure_lse"):
        call = getattr(proof_mass, name)
        monkeypatch.setattr(
            proof_mass, name, lambda *a, call=call, **k: call(*a, **{**k, "implementation": "portable"})
        )
    small = {"device": "cpu", "dtype": "float32", "tokens": 300, "heads": 2, "head_dim": 64, "seconds": 0.05}
    job = {**proof.jobs(proof.MASS)[turn], **small}
    with torch.no_grad():
        found = proof_mass.mass_faster(job, silent)
        alone = proof_mass.mass_faster({**job, "kernels": ["triton"]}, silent)
    assert found["speedup"] == found["times"][proof_mass.TRITON]["ms"] / found["times"][proof.MASS]["ms"]
    assert set(alone) == {"times"} and set(alone["times"]) == {proof_mass.TRITON}
    with pytest.raises(Wrong, match="triton, mass: hung"):
        proof_mass.mass_faster({**job, "without": {"triton, mass": "hung"}}, silent)


@pytest.mark.parametrize("kernel", proof.KERNELS)
def test_an_entry_needs_every_case(kernel):
    entry = proof.entry(results(kernel), {"capability": "9.0"}, kernel)
    assert entry["implementation"] == kernel
    own = {proof.MASS: ("two passes", "one pass")}
    kinds = own.get(kernel, ("raster", "ordered"))
    assert entry["speedup_over_triton"] == dict(zip(kinds, (1.4, 0.9), strict=True))
    assert entry["cases"] == len(proof.jobs(kernel)) - 2 and entry["capability"] == "9.0"
    for job in proof.jobs(kernel):
        left_out = results(kernel)
        del left_out[job["id"]]
        with pytest.raises(Wrong, match="not run"):
            proof.entry(left_out, {}, kernel)
    with pytest.raises(Wrong, match="RMS error"):
        proof.entry(results(kernel) | {proof.jobs(kernel)[3]["id"]: {"error": "Wrong: RMS error"}}, {}, kernel)


def test_the_jobs_of_all_kernels_have_names_of_their_own():
    names = [job["id"] for job in proof.jobs()]
    assert len(set(names)) == len(names) == sum(len(proof.jobs(kernel)) for kernel in proof.KERNELS)
