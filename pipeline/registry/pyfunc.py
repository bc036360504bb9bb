"""The MLflow model of a registered prompt, logged as code: MLflow stores this file, not a pickle.

MLflow runs the file by itself, so it stays thin and imports everything from the installed package.
The prompt folder is the model's artifact `prompt`; the base is found where the prediction runs.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.registry.predictor import Predictor, predict_frame


class PromptModel(PythonModel):
    """Predicts text, box and score for images and texts with one prompt."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the prompt onto its base; RegistryError when the base at hand is another one."""
        self.predictor = Predictor.from_folder(context.artifacts["prompt"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predicts for each row.

        Args:
            context: Unused; MLflow's protocol.
            model_input: Columns `image` (path, URL, bytes, data URL or base64), `text` and, for a
                prompt of several tasks, `task`.
            params: `beam_size`, where another than the default is wanted.

        Returns:
            Columns `text`, `box` (x0, y0, x1, y1 in pixels of the image, or None) and `score`.
        """
        return predict_frame(self.predictor, model_input, **(params or {}))


set_model(PromptModel())
