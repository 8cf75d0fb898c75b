"""Surgery on networks of timm, transformers, segmentation_models_pytorch and torchvision (the extra `zoo`)."""
