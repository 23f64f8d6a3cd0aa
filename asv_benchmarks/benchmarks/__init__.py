"""asv's benchmarks. Every commit is measured by the method of this checkout."""
