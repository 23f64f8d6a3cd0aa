"""The project's figures: their measurements, tables and plots."""
