"""The OFA model, its tuning methods, tokenizer, generation and checkpoints: plain PyTorch."""
