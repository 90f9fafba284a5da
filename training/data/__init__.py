"""From demonstration files to augmented batches of windows."""
