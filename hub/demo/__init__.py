"""A whole alliance on one machine. Read journey (what is shown), alliance (its processes), digits (data)."""
