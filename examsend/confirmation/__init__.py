"""What becomes of a SENT batch: its archive is asked whether it has each instance, and sources go only on that proof."""
