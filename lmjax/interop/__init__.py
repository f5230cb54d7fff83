"""Hugging Face checkpoint directories, in and out."""
