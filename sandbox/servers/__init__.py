"""Servers that stand in for what a host reaches on the internet: `hub` for GitHub and a model host, `cloud` for a cloud
provider. Both fail when told.
"""
