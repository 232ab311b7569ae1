"""Momentum-contrast pretraining (MoCo) in JAX: images without labels in, an encoder that transfers out."""

__version__ = "0.1.0"
