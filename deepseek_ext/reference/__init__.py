"""The operator families in plain, readable PyTorch: the meaning that tests hold the kernels to.

Nothing here imports the rest of the package; formats come from torch's own dtypes and plain arithmetic.
"""
