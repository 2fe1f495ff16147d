"""What a pair is good for, before a job of it: what both models say of some problems, and what follows from that."""
