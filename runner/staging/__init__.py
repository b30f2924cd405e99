"""What must be on a host before a run starts there: its environment, its data, and one real step as a rehearsal."""
