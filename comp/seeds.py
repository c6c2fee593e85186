"""Randomness as an argument: each draw has its own seed, named for its purpose."""

import hashlib


def derive_seed(root: int, *purpose: object) -> int:
    """A seed in [0, 2**63) for `purpose`, such as ("augment", fold, epoch)."""
    text = repr((root, *map(str, purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
