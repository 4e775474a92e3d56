"""Luna's domain: wildcards, prompts, weights and LoRAs. No sockets, no user interface, no ComfyUI."""

__version__ = "0.1.0"
