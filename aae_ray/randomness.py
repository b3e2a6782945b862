"""Random numbers as functions of counters: no generator has a state that a run would have to save."""

import numpy as np
import torch

# First counter behind the seed: what the numbers are for. The phases of training come after these.
ORDER, EVALUATION, FIRST_PHASE = 0, 1, 2
# Last counter of a phase, where there is one: what is drawn step by step.
LABELLED, CORRUPTION = 1, 2


def generator_for(seed: int, *counters: int) -> torch.Generator:
    """A CPU generator that depends on these integers alone, in this order; zeros at the end do not count."""
    state = np.random.SeedSequence((seed, *counters)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
