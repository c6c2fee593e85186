"""What a network is: backbone, preprocessing, where it can be cut, heads, how it runs fast."""
