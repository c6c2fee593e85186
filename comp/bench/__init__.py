"""Speed and score side by side: bare models, our stages and the peers, on the same photos, weights and size."""
