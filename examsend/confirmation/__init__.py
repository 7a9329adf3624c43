"""Proof of delivery: archives are asked whether they have what was SENT, and sources go on that proof."""
