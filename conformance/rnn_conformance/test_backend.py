"""Collected by ``pytest --pyargs rnn_conformance --rnn-backend NAME``."""

from .pytest_plugin import laws

test_backend = laws()
