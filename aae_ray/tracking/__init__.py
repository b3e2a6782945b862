"""MLflow: runs, the registry, where a run comes from."""
