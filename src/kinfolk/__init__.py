"""kinfolk builds whole families of language models for about the compute of the largest member."""

__version__ = "0.1.0"
