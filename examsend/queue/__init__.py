"""The queue: the only SQL outside db/. Batches and their transitions, instances, destinations, attempts, files seen."""
