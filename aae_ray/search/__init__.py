"""The study itself: what is tried, what became of it, what follows. No Ray, no MLflow."""
