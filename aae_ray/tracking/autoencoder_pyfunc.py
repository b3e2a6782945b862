"""Loads a published encoder or decoder as MLflow's python function: NumPy arrays in, NumPy arrays out.

This file travels with the models, in their `code` folder, and needs numpy, torch and mlflow alone. An MLflow signature
holds arrays to one type of numbers; float32 and float64 are both taken here, and shapes and range are checked here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = 2000  # that go through the network at a time
ROUNDING = 1e-6  # of values that were scaled to [0, 1]


class PublishedFunction:
    """A network with the shape and type of what it takes, the range of its values where it has one, and the names of
    the columns of rows that it takes or gives."""

    def __init__(
        self,
        module: Any,
        what: str,
        shape: list[int],
        limits: list[float] | None,
        dtype: str = "float32",
        columns: list[str] | None = None,
        answers: list[str] | None = None,
    ) -> None:
        self.module, self.what, self.shape, self.limits = module, what, tuple(shape), limits
        self.dtype, self.columns, self.answers = dtype, columns or [], answers or []

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """An array, or arrays by name, in float32; of rows of numbers a data frame, as which they are given, too.
        Raises ValueError for arrays of another shape or scale."""
        import torch

        rows_N = self._checked(self._values(data))
        with torch.no_grad():
            starts = range(0, max(len(rows_N), 1), ROWS)
            answers = [self.module(torch.from_numpy(rows_N[start : start + ROWS])) for start in starts]
        if isinstance(answers[0], Mapping):
            return {name: np.concatenate([answer[name].numpy() for answer in answers]) for name in answers[0]}
        rows_N = np.concatenate([answer.numpy() for answer in answers])
        if not self.answers:
            return rows_N
        import pandas as pd

        return pd.DataFrame(rows_N, columns=self.answers)

    def _values(self, data: Any) -> NDArray[Any]:
        if self.columns and hasattr(data, "columns"):  # as MLflow has checked and ordered them
            return np.stack([np.asarray(data[column]) for column in self.columns], axis=-1)
        (values,) = data.values() if isinstance(data, Mapping) else (data,)
        return np.asarray(values)

    def _checked(self, values: NDArray[Any]) -> NDArray[Any]:
        expected = f"{self.what} are arrays of shape (B, {', '.join(map(str, self.shape))})"
        if values.shape[1:] != self.shape:
            raise ValueError(f"{expected}, and not {values.shape}")
        rows_N = np.ascontiguousarray(values, dtype=self.dtype)
        if not self.limits and not np.isfinite(rows_N).all():
            raise ValueError(f"{expected} of finite numbers, and these are not all finite")
        if self.limits and rows_N.size:
            (least, most), (low, high) = self.limits, (float(rows_N.min()), float(rows_N.max()))
            if not (low >= least - ROUNDING and high <= most + ROUNDING):  # false of NaN
                raise ValueError(f"{expected} of {least:g} to {most:g}, and these are from {low:g} to {high:g}")
        return rows_N


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> PublishedFunction:
    """By MLflow, with the folder of the model's data."""
    import mlflow.pytorch

    return PublishedFunction(
        mlflow.pytorch.load_model(str(Path(path).parent)),
        model_config["what"],
        model_config["shape"],
        model_config["limits"],
        *(model_config[key] for key in ("dtype", "columns", "answers") if key in model_config),
    )
