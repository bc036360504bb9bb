"""What steps and answers cost. Each benchmark prints a table of arms measured side by side."""
