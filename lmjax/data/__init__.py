"""From text to batches: sources -> token store -> windows -> Batch."""
