"""Training, evaluation, tracking and registry: from prepared shards to a registered prompt."""
