"""Small random-weight model files in the real formats and under the real names, to try every part of Luna with.

The architectures are data (names, shapes, spread); `writing` alone computes. Nothing here is copied from a real
model: a picture made with these files is noise, but a noise that depends on prompt, seed and settings.
"""
