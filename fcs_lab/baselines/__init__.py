"""Methods that this one is compared with."""
