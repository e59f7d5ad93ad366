"""Chat with a saved model in the terminal. Public: `options`, `loading.load_responders`, `session`.

Must not know: training, other commands.
"""
