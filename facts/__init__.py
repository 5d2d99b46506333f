"""pyinfra facts of this project: each reads, in one round trip, all that one operation compares."""
