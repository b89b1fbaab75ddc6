"""What every room stands on: errors, documented parameters, files, tensors, seeds, caches, progress."""
