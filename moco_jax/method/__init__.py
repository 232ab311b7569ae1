"""The papers' algorithms: dictionaries, losses, optimizers and the training step. No files, no TensorFlow."""
