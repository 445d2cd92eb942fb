"""Training runs: text in, model directory out."""
