"""The programs around the proxy: something to serve, something that asks, and their story."""
