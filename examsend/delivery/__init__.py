"""Delivers a claimed batch: sends its instances, records their outcomes, and sets the batch's next state."""
