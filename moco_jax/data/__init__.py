"""From images on a disk to batches of views on devices; knows no model, no loss, no BatchNorm group."""
