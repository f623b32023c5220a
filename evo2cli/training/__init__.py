"""Training: FASTA to windows, the optimizer and its schedule, the loop, and what a run leaves on disk."""
