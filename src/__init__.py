"""MiDaS on MindSpore: network, losses, data, training and evaluation."""
