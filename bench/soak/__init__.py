"""The whole chain for a long time, on two hosts, with random faults, and what must hold all the same."""
