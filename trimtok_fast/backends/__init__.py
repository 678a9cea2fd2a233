"""Three ways to run the same five ops: the textbook, torch on any device, Triton kernels."""
