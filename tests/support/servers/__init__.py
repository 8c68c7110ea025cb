"""Servers on loopback that stand in for those on the internet."""
