"""How rows become batches: their order, their layout, and the plan of sizes and steps."""
