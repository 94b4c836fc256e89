"""Inference: predictors, and finding images and naming results."""
