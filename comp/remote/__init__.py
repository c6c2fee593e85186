"""A run on Kaggle's GPUs: pushed as a script, watched, and brought home."""
