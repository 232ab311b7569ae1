"""Semantic segmentation by a fine-tuned FCN: images and labels, views, network, training, IoU."""
