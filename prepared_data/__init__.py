"""Prepared rows on disk: written once, found again by what they were made from, read without being loaded."""
