"""Fits what a model needs to know beforehand, from a few dense runs."""
