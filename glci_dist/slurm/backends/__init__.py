"""Where jobs run: one class a launcher, all of one protocol (``base.Backend``)."""
