"""From a picture to what a language model takes: a function for each step, in the order of SPEC.md."""
