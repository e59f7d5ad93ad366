"""The supervised loss, and the sums from which metrics are made."""
