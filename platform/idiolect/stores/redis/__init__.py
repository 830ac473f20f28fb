"""What may be asked of a Redis, which may be gone, stopped, flushed or wrong at any moment.

It may guess, and it may refuse; only SQL grants. So nothing here is needed, and nothing that it says is served before
SQL has confirmed it.
"""
