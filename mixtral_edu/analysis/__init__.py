"""What the router does, and ways to interfere."""
