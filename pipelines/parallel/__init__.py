"""Several GPUs on one video: diffusers' context parallelism, and how sparse attention runs under it."""
