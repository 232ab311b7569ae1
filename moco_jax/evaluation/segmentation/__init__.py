"""Semantic segmentation by a fine-tuned FCN: folders of images and labels, views, network, training, IoU."""
