"""Kaggle's archive -> photos, a manifest, folds, pixels."""
