"""What stays true without the server. Read verify, statements, signing, encoding, translog."""
