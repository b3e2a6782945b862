"""Searches by the clock on the wall: the platform's command, Optuna with PyTorch alone, Ray's documented pattern."""
