"""Three ways to run the same four ops: the textbook, torch on any device, Triton kernels."""
