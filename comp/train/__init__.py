"""Pixels to fitted folds and out-of-fold logits."""
