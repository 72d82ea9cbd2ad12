"""The oracle of k-means."""

from __future__ import annotations

import torch

from dittools.kernels.kmeans.dispatch import Clusters


def naive_kmeans(x: torch.Tensor, centroids: torch.Tensor, iterations: int) -> Clusters:
    """The oracle: distances as differences in fp64, clusters one after the other."""
    x, centroids = x.double(), centroids.double()
    for _ in range(iterations):
        labels = (x[:, :, None] - centroids[:, None]).square().sum(-1).argmin(-1)  # [N, S]
        mine = labels[:, None] == torch.arange(centroids.shape[1], device=x.device)[:, None]  # [N, C, S]
        sizes = mine.sum(-1)
        means = mine.double() @ x / sizes.clamp_min(1)[..., None]
        centroids = torch.where(sizes[..., None] > 0, means, centroids)
    return Clusters(labels.int(), centroids.float(), sizes.int())
