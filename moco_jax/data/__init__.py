"""Images on a disk become batches of views on devices.

This room knows no model, no loss and no BatchNorm group.
"""
