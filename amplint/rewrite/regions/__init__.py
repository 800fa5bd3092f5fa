"""What runs under autocast: forwards, losses, evaluation."""
