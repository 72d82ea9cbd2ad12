"""What a setting costs and gives: which cases a report draws, the folder they lie in, and the page made of them.

This package decides, keeps and shows. It draws nothing itself: a command with a pipeline does.
"""
