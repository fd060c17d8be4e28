"""What `train` is made of: the loop over steps, and the ways into it and back."""
