"""Family 1, the scaler protocol: scale, backward, unscale_, clip, step, update, in this order."""
