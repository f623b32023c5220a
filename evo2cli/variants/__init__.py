"""Scores of the variants in a file: read, scored in shared context, and written, whatever happens on the way."""
