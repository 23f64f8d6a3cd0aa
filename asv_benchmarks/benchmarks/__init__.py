"""What asv measures. The method is this checkout's, whatever commit is measured."""
