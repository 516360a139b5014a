"""Text becomes documents (`corpus`), documents become tokens on disk (`tokens`), tokens become batches (`loader`)."""
