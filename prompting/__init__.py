"""The only room that knows prompts: record formats, chat rendering, the templates that we ship."""
