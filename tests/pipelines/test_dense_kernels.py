"""Dense kernels by name on the CPU: they run, and they differ by rounding alone."""

import torch
import torch.nn.functional as F

from dittools.pipelines import dense_kernels


def test_both_kernels_of_the_cpu_run_and_agree_to_rounding():
    device = torch.device("cpu")
    assert dense_kernels.names(device, "float32", 64) == ["flash", "math"]
    q, k, v = (torch.randn(1, 2, 300, 64, generator=torch.Generator().manual_seed(n)) for n in range(3))
    with torch.no_grad():
        plain = F.scaled_dot_product_attention(q, k, v)
        found = {}
        for name in ("flash", "math"):
            with dense_kernels.using(name):
                found[name] = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(found["flash"], plain)
    assert not torch.equal(found["math"], plain) and torch.allclose(found["math"], plain, atol=1e-5)


def test_kernels_are_put_in_the_order_of_their_speed():
    found = dense_kernels.fastest_first(["math", "flash"], (1, 4, 1024, 64), torch.device("cpu"), "float32")
    assert sorted(found) == ["flash", "math"]
    assert found[0] == "flash"  # math makes the whole 1024 x 1024 of each head: several times as slow
