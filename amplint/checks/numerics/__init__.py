"""Family 4, numerics: constants, sums and products that do not fit in half precision."""
