"""Random numbers as functions of counters: no generator has a state that a run would have to save."""

import functools
import hashlib

import numpy as np
import torch
from torch import Tensor

# First counter behind the seed: what the numbers are for. A phase of training and a network follow by their names, so
# that none of them depends on which others there are.
ORDER, EVALUATION, PHASE, WEIGHTS = 0, 1, 2, 3
# Of an epoch's order: that of labelled images. Of a phase: what is drawn for many steps, what is as large as images.
LABELLED, DRAWS, CORRUPTION = 1, 2, 3

# The Mersenne Twister's key in the state of PyTorch's CPU generator, one 32-bit word in each 64 bits. The layout is
# PyTorch's own (held by tests/test_randomness.py); what lies before and after says that no number has been drawn.
KEY_WORDS, KEY_START = 624, 24


def generator_for(seed: int, *counters: int | str) -> torch.Generator:
    """A CPU generator that depends on these numbers and names alone, in this order.

    `manual_seed` keeps 32 bits of a seed on the CPU, so that of 90,000 generators two would be the same; here the
    whole state is a hash of what is given.
    """
    digest = hashlib.shake_128(repr((seed, *counters)).encode()).digest(4 * KEY_WORDS)
    state = _fresh_state().clone()
    key = state.numpy()[KEY_START : KEY_START + 8 * KEY_WORDS].view(np.uint64)
    key[:] = np.frombuffer(digest, np.dtype("<u4"))
    return torch.Generator().set_state(state)


@functools.cache
def _fresh_state() -> Tensor:
    return torch.Generator().manual_seed(0).get_state()
