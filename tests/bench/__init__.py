"""Speed and score side by side: bare models, our stages and their peers. See `__main__.py`."""
