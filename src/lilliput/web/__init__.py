"""A page that runs a network in whoever's browser reads it, and the runtime that does so."""
