"""The cores of Hyena-SE and Hyena-MR as single Triton kernels: featurizer, pre-gate, convolution, skip, post-gate."""
