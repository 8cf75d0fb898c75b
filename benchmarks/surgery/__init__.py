"""Model surgery on all of torchvision's classifiers, and what the saturation monitor costs."""
