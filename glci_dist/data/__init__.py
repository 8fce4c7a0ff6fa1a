"""From photos to batches: shards, their order, decoding, holes, and the step-indexed loader."""
