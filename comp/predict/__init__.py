"""Fitted folds -> test logits -> calibrated, clipped probabilities."""
