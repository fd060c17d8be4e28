"""Which source every row of a run comes from: names and rates, their schedule over steps, a slot for each row."""
