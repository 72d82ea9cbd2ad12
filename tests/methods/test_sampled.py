"""The probe: which rows it looks at, and the errors it measures."""

import pytest
import torch

from dittools.kernels.probe import dispatch as probe
from dittools.selection.sampled import stratified_rows


def test_rows_come_one_from_each_stretch_of_the_whole_sequence():
    rows = stratified_rows(1003, 50, torch.Generator().manual_seed(1))
    assert len(rows) == 50
    for i, row in enumerate(rows.tolist()):
        assert 1003 * i / 50 <= row < 1003 * (i + 1) / 50


def test_rows_repeat_with_the_seed_and_change_with_it():
    draw = [stratified_rows(9999, 64, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


def test_asking_for_more_rows_than_tokens_takes_each_once():
    assert stratified_rows(7, 64, torch.Generator()).tolist() == list(range(7))


def example(dtype=torch.float32):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 50, 3, 16).to(dtype) for _ in range(3))
    rows = torch.tensor([1, 10, 30, 49])
    masks = [torch.rand(4, 50) < share for share in (0.5, 0.2)]
    for mask in masks:
        mask[:, 0] = True
    return q * 2, k, v, rows, masks


def sampled_errors(q, k, v, rows, masks, scale):
    return probe.probe_errors(q[:, rows], k, v, probe.pack_masks(torch.stack(masks)), scale=scale)


def by_definition(q, k, v, rows, masks, scale):
    errors = torch.zeros(len(masks), 2, 3, dtype=torch.double)
    for c, mask in enumerate(masks):
        for b in range(2):
            for h in range(3):
                logits = q[b, rows, h].double() @ k[b, :, h].double().T * scale
                dense = logits.softmax(-1) @ v[b, :, h].double()
                sparse = logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v[b, :, h].double()
                errors[c, b, h] = (sparse - dense).square().mean()
    return errors


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_errors_are_those_of_the_masked_softmax(dtype, rtol):
    call = (*example(dtype), 0.25)
    torch.testing.assert_close(sampled_errors(*call).double(), by_definition(*call), rtol=rtol, atol=1e-6)


def test_errors_do_not_depend_on_how_heads_are_chunked(monkeypatch):
    call = (*example(), 0.25)
    whole = sampled_errors(*call)
    monkeypatch.setattr(probe, "CHUNK_BYTES", 1)
    torch.testing.assert_close(sampled_errors(*call), whole)


def test_a_mask_that_misses_all_the_mass_loses_the_whole_output_and_gives_no_nan():
    q, k, v, rows, _ = example()
    q, k = q.clone(), k.clone()
    q[:], k[:] = 0, 0
    q[..., 0], k[:, 7, :, 0] = 40.0, 40.0  # all mass on token 7, 1600 nats above the rest
    mask = torch.ones(4, 50, dtype=torch.bool)
    mask[:, 7] = False
    error = sampled_errors(q, k, v, rows, [mask], 1.0)
    torch.testing.assert_close(error[0], v[:, 7].square().mean(-1))
