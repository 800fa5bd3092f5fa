"""What runs in the child process of `amplint trace`: the user's script or factory, up to one batch through one model,
and the analysis of that. start.py is run by path, so that the user's interpreter needs no amplint installed."""
