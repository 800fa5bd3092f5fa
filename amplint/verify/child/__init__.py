"""What runs in the child processes of `amplint verify`: the user's script for N optimizer steps, under a probe that
writes down what happened and changes nothing of it."""
