"""The demonstration: makes sample studies, runs the passes, and sends to a receiver that stores."""
