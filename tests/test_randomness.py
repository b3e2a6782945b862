"""Generators are functions of the whole of what is counted."""

import numpy as np
import torch

from aae_ray.randomness import KEY_START, KEY_WORDS, generator_for


def test_the_state_of_a_generator_is_the_key_of_a_mersenne_twister() -> None:
    """PyTorch 2.13 keeps it where this says: its numbers are those of NumPy's Mersenne Twister with the same key."""
    generator = generator_for(5, "decoder", 3)
    state = generator.get_state().numpy()
    key = state[KEY_START : KEY_START + 8 * KEY_WORDS].view(np.uint64).astype(np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": KEY_WORDS}}
    words = twister.random_raw(2000).astype(np.int64)
    drawn = torch.empty(2000, dtype=torch.int64).random_(0, 2**20, generator=generator).numpy()
    assert (drawn == words % 2**20).all()


def test_numbers_depend_on_all_that_is_given_and_on_its_order() -> None:
    keys: list[tuple[int | str, ...]] = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), ("a",), ("a", 0), ("b", 0), ("1",)]
    first = {tuple(torch.rand(8, generator=generator_for(7, *key)).tolist()) for key in keys}
    assert len(first) == len(keys)
    assert torch.equal(torch.rand(8, generator=generator_for(7, 1)), torch.rand(8, generator=generator_for(7, 1)))


def test_seeds_differ_beyond_their_low_32_bits() -> None:
    """PyTorch's own `manual_seed` takes these two for the same on the CPU."""
    low, high = 12345, 12345 + 2**32
    same = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (low, high)]
    ours = [torch.rand(4, generator=generator_for(seed)) for seed in (low, high)]
    assert torch.equal(*same) and not torch.equal(*ours)
