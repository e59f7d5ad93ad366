"""A trained model as a folder that others can use: merged, compared with what was trained, described."""
