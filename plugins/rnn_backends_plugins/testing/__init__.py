"""Test doubles for missing devices; nothing here runs outside of tests."""
