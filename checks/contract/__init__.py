"""What the deploy and the host agree on: where things lie, and what the host is to be like.

Both sides import it, and it imports nothing of either: the deploy fills a `Config` and writes it, the checks read it.
"""
