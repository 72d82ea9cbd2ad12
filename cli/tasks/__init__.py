"""`dittools generate` for whatever a pipeline folder is: inputs beside text, lists of prompts and seeds, adapters."""
