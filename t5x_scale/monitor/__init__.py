"""Floor 6: what a run tells the person who watches it. Takes plain numbers and never makes the step wait."""
