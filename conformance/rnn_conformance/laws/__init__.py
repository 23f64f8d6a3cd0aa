"""The laws, by subject: each is one function, and the first line of its docstring is its sentence."""
