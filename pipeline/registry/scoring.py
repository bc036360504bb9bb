"""A registered prompt as MLflow itself loads it, for callers that must not know MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlflow
import mlflow.pyfunc
from mlflow.exceptions import MlflowException

from pipeline.errors import RegistryError
from pipeline.tracking.config import StoreLocation

if TYPE_CHECKING:
    import pandas as pd


def predict_registered(reference: str, rows: pd.DataFrame, location: StoreLocation) -> pd.DataFrame:
    """Predicts with `mlflow.pyfunc.load_model`, the way that any MLflow user does.

    MLflow's loader asks the process's default store, so that becomes the given one.

    Args:
        reference: `name@alias` or `name/version`.
        rows: Columns `image`, and `text` and `task` where the prompt needs them.
        location: The store.

    Returns:
        Columns `text`, `box` and `score`.

    Raises:
        RegistryError: there is no such version, or its base is not the one at hand.
        DataError: an image cannot be read.
    """
    mlflow.set_tracking_uri(location.uri)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{reference.removeprefix('models:/')}")
    except MlflowException as error:
        raise RegistryError(f"{reference} cannot be loaded: {error}") from error
    answers: pd.DataFrame = model.predict(rows)
    return answers
