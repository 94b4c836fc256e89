"""Transforms, the training data source and the weight conversion."""
