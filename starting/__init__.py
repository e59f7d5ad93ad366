"""The first configuration: a few questions, a look at model, data and machine, and a commented YAML file."""
