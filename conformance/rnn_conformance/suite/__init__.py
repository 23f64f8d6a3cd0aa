"""The machinery: what a law is, the cases it is tried on, the reference, and the verdict."""
