"""What a pipeline folder can be asked for: its class, the inputs that its call takes, and one call of it."""
