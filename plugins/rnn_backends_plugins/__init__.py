"""The built-in backends, one file or folder each; they register through entry points, like any other backend."""
