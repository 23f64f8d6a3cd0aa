"""The laws, by subject: one function each, the law in one sentence as its docstring."""
