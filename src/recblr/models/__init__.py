"""One model a file; all follow `recblr.models.base`."""
