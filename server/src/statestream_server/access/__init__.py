"""Access: who may call. Tokens as a file has them, and what runs under each of them."""
