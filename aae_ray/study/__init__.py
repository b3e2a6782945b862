"""Studies: Ray Tune and Ray Train run the trials, Optuna suggests them, MLflow records them."""
