"""The two file formats, read and written with the standard library alone: safetensors and GGUF."""
