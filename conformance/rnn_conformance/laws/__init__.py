"""The laws, by subject. Each law is one function, and the first line of its docstring is its sentence."""
