"""Models by name, path or hub."""
