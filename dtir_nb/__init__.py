"The diffusion training paradigm for ordinary image-restoration networks."
__version__ = "0.1.0"
