"""Prompt artifacts, their registry in MLflow, and prediction with a registered prompt."""
