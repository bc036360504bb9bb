"""Recording of runs: the journal on disk and its delivery to MLflow."""
