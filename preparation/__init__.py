"""Rows of the data to tokens on disk, in one process or in several, every one of them counted."""
