"""Metrics: pure functions of features, keys and pixels."""
