"""Model cards: what a checkpoint says of itself in its README.md, in the format of the Hugging Face hub."""
