"""What changes in models and autograd functions themselves."""
