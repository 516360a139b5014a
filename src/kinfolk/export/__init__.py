"""Checkpoints in other formats: GGUF for llama.cpp, and quantised safetensors, with what each of them costs in loss."""
