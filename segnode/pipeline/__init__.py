"""From received images to delivered segmentations: the only place where a state changes."""
