"""Frame codecs: one module each, from an unsigned 2-D array to the bytes of one encapsulated frame."""
