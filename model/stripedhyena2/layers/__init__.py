"""Dense layers, and what takes their place: FP8 products, one-byte weights, low-rank updates."""
