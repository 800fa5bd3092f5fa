"""The scaler: where it is made, how it gets to the steps, what is unscaled, saved and restored."""
