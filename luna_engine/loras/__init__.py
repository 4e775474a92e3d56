"""LoRA and embedding files: names, tags in prompts, and what links them to wildcards."""
