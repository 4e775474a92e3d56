"""The only part of Luna that runs models; everything here may import torch, lazily where the process must start fast."""
