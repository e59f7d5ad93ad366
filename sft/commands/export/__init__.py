"""Exports a saved model as a verified folder with a model card. Public: `options`, `export.export`.

Must not know: training, other commands.
"""
