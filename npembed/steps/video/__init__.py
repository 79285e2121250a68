"""A video: which of its frames are taken, which times they get, and how they are stacked."""
