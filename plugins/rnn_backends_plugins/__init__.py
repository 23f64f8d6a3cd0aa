"""The built-in backends, a file or folder each; they register through entry points, like any other backend."""
