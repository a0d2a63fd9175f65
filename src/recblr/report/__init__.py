"""Tables from run folders; needs no data, no model and no network."""
