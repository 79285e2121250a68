"""What the steps are computed with: a config, a family, a stage, a model and its arithmetic."""
