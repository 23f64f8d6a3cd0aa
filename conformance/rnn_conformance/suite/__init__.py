"""The machinery: the type of a law, the cases it runs over, the reference, and the verdict."""
