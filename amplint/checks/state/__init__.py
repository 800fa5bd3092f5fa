"""Family 3, low-precision state: what is kept in half precision from one step to the next."""
