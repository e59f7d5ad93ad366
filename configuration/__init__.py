"""Settings: what they are (`schema`), how they are read (`reading`, `coercion`), and what must hold (`checks`)."""
