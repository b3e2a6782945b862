"""The training of one configuration: plain PyTorch, with no knowledge of Ray, Optuna or MLflow."""
