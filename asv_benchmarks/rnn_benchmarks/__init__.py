"""Every figure of this project: how it is measured, and its tables and pictures."""
