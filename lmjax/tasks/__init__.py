"""What a model is trained to do: from a batch to a loss."""
