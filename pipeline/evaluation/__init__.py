"""Scores of a model on a prepared dataset: metrics, evaluator, report and pictures."""
