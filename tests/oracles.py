"""What torch and SciPy say, for comparison; nothing here uses npembed."""
