"""What every room needs and no reader of the numbers: arguments, messages, bounded reading, files written whole."""
