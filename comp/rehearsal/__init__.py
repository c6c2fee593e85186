"""A local stand-in for Kaggle, and photos to go with it."""
