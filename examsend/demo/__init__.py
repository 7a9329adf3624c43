"""The demonstration: sample studies, a receiver that really stores, and the real passes between them."""
