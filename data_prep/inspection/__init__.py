"""A look into a prepared dataset: numbers, histograms, and samples to see."""
