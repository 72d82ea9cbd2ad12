"""Does a Hopper kernel prove itself on this card? All cases for its type of card, or a few of them at its first use."""
