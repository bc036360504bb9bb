"""Recording of runs: the journal on disk and its delivery to MLflow."""

import os

# MLflow reads this while it is imported, so it has to be set before any module below does that.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
