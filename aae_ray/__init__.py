"""aae_ray: finds, trains and publishes the best adversarial autoencoder for a data set."""

__version__ = "0.1.0"
