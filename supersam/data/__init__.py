"""From images on disk to batches on a device."""
