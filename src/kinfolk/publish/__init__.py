"""Checkpoints on the Hugging Face hub: what belongs in a repository, under which name, and its upload."""
