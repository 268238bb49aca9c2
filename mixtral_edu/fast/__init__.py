"""The same results sooner: copies of weights, FlashAttention-2, a step recorded as a CUDA graph."""
