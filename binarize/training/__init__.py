"""Fine-tuning, one purpose per file; `binarize.finetune` puts them together."""
