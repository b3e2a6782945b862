"""The mathematics of adversarial autoencoders, in PyTorch alone."""
