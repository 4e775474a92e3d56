"""The only part of Luna that runs models. Its modules may import torch; `engine` does so when it starts."""
