"""Rented hosts: the only code that repeats a provider's verb, until nothing is rented that nobody wants.

`money` and `decide` are pure, `leases` are their values, `rows` keeps them in the home's database, and `loop` is the
step that a controller takes in every round.
"""
