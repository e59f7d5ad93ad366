"""Other programs that read what is saved here; each runs in an environment of its own."""
