"""The numbers of a prepared set, as networks see them, on the device where they are used."""

import numpy as np
import torch
from torch import Tensor

from aae_ray.datasets.dataset import Dataset

RESIDENT_SHARE = 0.5  # a GPU keeps the whole set when it takes at most this share of the free memory


class Images:
    """Examples of a set by index, as rows of numbers in the scale of their kind.

    On the CPU they are gathered from the memory map that all workers of a node share; on a GPU the whole set lies on
    the device as it is stored when it fits.
    """

    def __init__(self, dataset: Dataset, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.kind = device, dtype, dataset.kind
        self.rows_ND = dataset.examples_NX.reshape(len(dataset.examples_NX), -1)
        self.resident_ND: Tensor | None = None
        if device.type == "cuda" and self.rows_ND.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.resident_ND = torch.from_numpy(np.array(self.rows_ND)).to(device)

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        """Rows x_BD of these examples."""
        if self.resident_ND is not None:
            rows_BD = self.resident_ND[torch.from_numpy(indices).to(self.device, non_blocking=True)]
        else:
            rows_BD = torch.from_numpy(self.rows_ND[indices]).to(self.device, non_blocking=True)
        return self.kind.scaled(rows_BD, self.dtype)


def examples(dataset: Dataset, rows: np.ndarray) -> Tensor:
    """Examples of the set by index, in their own shape and as networks see them, (N, X), on the CPU."""
    return dataset.kind.scaled(torch.from_numpy(np.asarray(dataset.examples_NX[rows])), torch.float32)


def given_examples(dataset: Dataset, rows: np.ndarray) -> Tensor:
    """The same as users of a published model give them: images in [0, 1], rows in their own units, as doubles."""
    return dataset.kind.given(torch.from_numpy(np.asarray(dataset.examples_NX[rows])))
