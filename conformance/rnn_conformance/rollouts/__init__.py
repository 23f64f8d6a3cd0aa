"""Rollouts of real environments, recorded, and the laws over them."""
