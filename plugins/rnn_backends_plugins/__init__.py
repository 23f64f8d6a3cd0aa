"""The built-in backends, one file each; they register through the same entry points as anybody's."""
