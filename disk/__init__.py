"""Small files on the machine's disk, written so that a crash or a lost power leaves them whole."""
