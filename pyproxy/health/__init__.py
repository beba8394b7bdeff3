"""Who is there: the threads that find out."""
