"""What of a corpus is kept: filters of quality, duplicates, overlap with evaluation texts. Numpy alone."""
