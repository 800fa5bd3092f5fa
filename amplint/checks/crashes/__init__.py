"""Family 5, dtype crashes: what has no half-precision kernel, and dtypes that do not go together."""
