"""Metrics, evaluation and tables."""
