"""Measuring kernels and whole denoiser calls: nothing is timed before it is found right. Imports no command line."""
