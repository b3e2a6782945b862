"""What a model is worth: held-out metrics, sample quality, figures."""
