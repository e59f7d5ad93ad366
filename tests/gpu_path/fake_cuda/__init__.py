"""A CUDA driver, runtime and cuBLAS without a GPU, to be loaded into a process before torch."""
