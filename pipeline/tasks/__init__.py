"""What each task asks, learns to say, may say, and how it is scored: one file a task."""
