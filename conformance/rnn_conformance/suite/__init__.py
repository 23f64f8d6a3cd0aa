"""The machinery: the type of a law, its cases, the reference, and the verdict."""
