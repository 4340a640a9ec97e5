"""Training sets: images and segmentations to and from the formats that people train with."""
