"""How the embedded model's weights were made, and what judges them; not part of the installed package."""
