"""The commands besides training: first configuration, chat, export, comparison of runs; and the console commands.

Public: `console` (installed commands), `saved_models` and `model_loading` (find and load a saved model), `init.start`,
`chat.session`, `export.export`, `compare.comparison`. Must not know: how a model is trained (`sft.training`).
"""
