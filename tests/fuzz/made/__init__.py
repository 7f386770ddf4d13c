"""What the targets read: one module for each format, and the ways to damage a file."""
