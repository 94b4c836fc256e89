"""Evaluation: benchmark readers, metrics, the pipeline, result files and table."""
