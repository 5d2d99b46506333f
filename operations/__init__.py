"""pyinfra operations of this project: read one fact, compare, and act only on a difference."""
