"""What the bench calls right and wrong, before it times anything."""

import pytest
import torch
import torch.nn.functional as F

from dittools.kernels import block_sparse_attention
from dittools.kernels.proof.check import Oracle, Wrong, poisoned, result_of
from dittools.kernels.proof.inputs import make_mask, make_order, make_tensors

CPU = torch.device("cpu")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def case(request):
    q, k, v = make_tensors(2, 500, 64, request.param, CPU)
    mask = make_mask(2, 500, 128, 64, 0.4, "ragged", CPU)
    mask.keep[0, 0, 0] = False
    return q, k, v, mask


def attend(q, k, v, mask, **call):
    return block_sparse_attention(q, k, v, mask, implementation="portable", return_lse=True, **call)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_right_result_passes(case, ordered):
    order = make_order(2, 500, CPU) if ordered else None
    Oracle(*case, 64**-0.5, order).judge(*attend(*case, order=order))


def test_an_error_of_more_than_twice_the_plain_one_is_wrong(case):
    out, lse = attend(*case)
    for head in (0, 1):
        worse = out.clone()
        worse[0, -100:, head] *= 1.02
        with pytest.raises(Wrong, match=f"RMS error .* in query block 3 of head {head}, allowed"):
            Oracle(*case, 64**-0.5).judge(worse, lse)


def test_dense_attention_is_no_sparse_one(case):
    q, k, v, _ = case
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    Oracle(q, k, v, None, 64**-0.5).judge(out)
    case[3].keep[0, 0, 0] = True
    with pytest.raises(Wrong, match="RMS error"):
        Oracle(*case, 64**-0.5).judge(out)


def test_a_wrong_lse_an_empty_row_that_is_not_and_a_wrong_shape_are_seen(case):
    out, lse = attend(*case)
    oracle = Oracle(*case, 64**-0.5)
    with pytest.raises(Wrong, match="the LSE is off"):
        oracle.judge(out, lse + 0.01)
    filled = out.clone()
    filled[0, 0, 0] = 1e-3
    with pytest.raises(Wrong, match="a row that keeps nothing"):
        oracle.judge(filled, lse)
    with pytest.raises(Wrong, match="output of shape"):
        oracle.judge(out[:, :400], lse)


def test_what_nobody_wrote_is_not_finite(case):
    out, _ = result_of(lambda: torch.empty_like(case[0]))
    assert out.isnan().all() and not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(Wrong, match="not finite"):
        Oracle(*case, 64**-0.5).judge(out)


def test_the_setting_for_fresh_memory_is_put_back_after_an_error():
    with pytest.raises(RuntimeError), poisoned():
        raise RuntimeError
    assert not torch.are_deterministic_algorithms_enabled()


def test_masks_have_the_density_asked_for_in_every_family():
    uniform = make_mask(3, 6400, 64, 64, 0.2, "uniform", CPU)
    assert (uniform.keep.sum(-1) == 20).all()
    ragged = make_mask(3, 6400, 64, 64, 0.2, "ragged", CPU).keep.sum(-1)
    assert ragged.min() < 8 and ragged.max() > 32 and abs(ragged.float().mean() - 20) < 1.5
    heavy = make_mask(3, 6400, 64, 64, 0.2, "heavy head", CPU)
    per_head = heavy.density()[0]
    assert per_head[0] == pytest.approx(0.36, abs=0.01) and per_head[1] == pytest.approx(0.12, abs=0.01)
    with pytest.raises(ValueError, match="unknown family 'dense'"):
        make_mask(3, 640, 64, 64, 0.2, "dense", CPU)


def test_an_order_is_a_permutation_for_each_head_and_not_the_same_for_all():
    order = make_order(2, 500, CPU)
    assert torch.equal(order.sort(-1).values, torch.arange(500).int().expand(1, 2, -1))
    assert not torch.equal(order[0, 0], order[0, 1])
