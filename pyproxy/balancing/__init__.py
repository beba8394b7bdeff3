"""Who serves: pure decisions. No sockets, no clocks."""
