"""The papers' algorithms: methods, dictionaries, losses, optimizers; no files, no TensorFlow."""
