"""Files that describe a cluster, what they need before `ray up`, and who has it."""
