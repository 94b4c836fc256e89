"""Weights: checkpoint files, and the names that other projects give to their tensors."""
