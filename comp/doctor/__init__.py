"""What a run needs: each line fine, or what to do."""
