"""The model server: one process per device holds text encoders and VAE for every ComfyUI instance."""
