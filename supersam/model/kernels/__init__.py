"""GPU kernels of attention and of the mask decoder, in Triton."""
