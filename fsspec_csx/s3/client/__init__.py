"""Clients: credentials, validation of responses, retries and errors."""
