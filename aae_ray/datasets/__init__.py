"""Images in: formats, the prepared form, labels. No training, no Ray."""
