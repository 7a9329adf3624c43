"""A claimed batch becomes associations: the delivery, its watcher, its recorder, the batch's next state."""
