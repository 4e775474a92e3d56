"""Turning numbers into other types: casts and block quantisation, behind one seam. NumPy loads here and not above."""
