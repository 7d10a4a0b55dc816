"""Images into WebDataset shards, and out of them into training, extraction and evaluation."""
