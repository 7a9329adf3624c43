"""The queue: batches and their transitions, instances, destinations, attempts, known files. The only SQL outside ``db``."""
