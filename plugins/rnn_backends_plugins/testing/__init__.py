"""Test doubles for devices that are not there; nothing here runs outside tests."""
