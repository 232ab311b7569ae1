"""Mean and standard deviation of ImageNet's pixels, scaled to 0..1: red, green, blue."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
