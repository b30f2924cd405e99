"""Vast.ai: rented machines. `api` is the only file that knows the service's addresses and routes."""
